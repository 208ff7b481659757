"""Batches of texts for predictors: few shapes, hence few compiled programs."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.vocabulary import pad

_TEXTS = 16  # per batch
_SHORTEST = 16  # tokens of a row


def row_batches(
    rows: Sequence[Sequence[int]], context: int, types: Sequence[Sequence[int]] | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Groups rows of ids by length.

    Args:
      types: of pairs of texts, the type of every token, which becomes `token_type`.

    Yields:
      The indices of up to 16 rows, and these as a batch of one text a row, filled up to a power of two of tokens.
    """
    by_width: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        width = min(context, max(_SHORTEST, 1 << max(0, len(row) - 1).bit_length()))
        by_width.setdefault(width, []).append(index)
    for width, indices in sorted(by_width.items()):
        for start in range(0, len(indices), _TEXTS):
            part = indices[start : start + _TEXTS]
            count = 1 if len(part) == 1 else _TEXTS
            lengths = np.array([len(rows[index]) for index in part] + [0] * (count - len(part)))
            position = np.broadcast_to(np.arange(width, dtype=np.int32), (count, width))
            segment = (position < lengths[:, None]).astype(np.int32)
            tokens = pad([rows[index] for index in part], width, count)
            batch = {"tokens": tokens, "position": position, "segment": segment}
            yield part, batch if types is None else batch | {"token_type": pad([types[i] for i in part], width, count)}


def outputs_of_rows(
    compute: Callable[[Batch], np.ndarray],
    rows: Sequence[Sequence[int]],
    context: int,
    types: Sequence[Sequence[int]] | None = None,
) -> list[np.ndarray]:
    """Runs `batch -> array [batch, ...]` over rows of ids (`row_batches`); returns the outputs in the rows' order."""
    outputs: list[np.ndarray] = [np.empty(0)] * len(rows)
    for indices, batch in row_batches(rows, context, types):
        computed = np.asarray(compute(batch))
        for index, output in zip(indices, computed, strict=False):  # the last rows may be filler
            outputs[index] = np.copy(output)
    return outputs
