"""The contract of everything that can stream: any cut of the input gives what one pass gives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

JUNK = 1e3  # in elements that a step does not read


def random_cuts(seed: int, length: int) -> list[int]:
    """Returns lengths of pieces that add up to `length`: random ones, with an empty piece and pieces of one element."""
    rng = np.random.default_rng(seed)
    pieces, left = [0, min(1, length)], length - min(1, length)
    while left > 0:
        pieces.append(min(int(rng.choice([0, 1, 2, 3, 5, 8])), left))
        left -= pieces[-1]
    return [*pieces, 0]


def verify_streaming(
    *,
    init: Callable[[int], Any],
    step: Callable[[Any, Any], tuple[Any, Any]],
    finalize: Callable[[Any], Any],
    full: Callable[[Any], Any],
    inputs: np.ndarray,
    cuts: Sequence[Sequence[int]] = (),
    delay: int = 0,
    atol: float = 1e-5,
) -> None:
    """Checks that folding `step` over any cut of the inputs, and `finalize`, give the full pass.

    Args:
      init: `batch -> state`.
      step: `(state, piece [B, t, ...]) -> (state, output [B, n, ...])`.
      finalize: `state -> output`, what is left at the end.
      full: `inputs -> output`.
      inputs: [B, T, ...].
      cuts: lengths of pieces, each list adding up to T; random ones, all at once and one by one are always tried.
      delay: elements of the output that come before the first one of the full pass.
    """
    batch, length = inputs.shape[:2]
    expected = np.asarray(full(inputs))
    for pieces in [[length], [1] * length, random_cuts(0, length), random_cuts(1, length), *cuts]:
        assert sum(pieces) == length
        state, outputs, at = init(batch), [], 0
        for piece in pieces:
            state, output = step(state, jnp.asarray(inputs[:, at : at + piece]))
            outputs.append(np.asarray(output))
            at += piece
        outputs.append(np.asarray(finalize(state)))
        streamed = np.concatenate(outputs, axis=1)[:, delay:]
        assert streamed.shape == expected.shape, f"cut {pieces}: {streamed.shape}, not {expected.shape}"
        np.testing.assert_allclose(streamed, expected, rtol=0, atol=atol, err_msg=f"cut {pieces}")


class InChunks:
    """`init`, `step` and `finalize` of `verify_streaming` for a step over whole chunks, by a buffer before it.

    Args:
      init: `batch -> state`.
      step: `(state, chunk [B, size, ...], valid [B]) -> (state, output [B, n, ...], valid outputs [B])`.
      size: elements of a chunk.
      width: values of an element.
      lead: elements before the first one of a stream that the step does not read.
    """

    def __init__(
        self,
        init: Callable[[int], Any],
        step: Callable[..., tuple[Any, Any, Any]],
        size: int,
        width: int,
        lead: int = 0,
    ):
        self._init, self._step, self._size, self._width, self._lead = init, step, size, width, lead

    def init(self, batch: int) -> Any:
        return np.full((batch, self._lead, self._width), JUNK, np.float32), self._init(batch), 0

    def step(self, state: Any, piece: Any) -> tuple[Any, Any]:
        held, inner, total = state
        held = np.concatenate([held, piece], axis=1)
        outputs = []
        while held.shape[1] >= self._size:
            chunk, held = np.split(held, [self._size], axis=1)
            inner, output = self._run(inner, chunk, self._size)
            outputs.append(output)
        if not outputs:  # a step without valid elements changes nothing
            inner, output = self._run(inner, self._padded(held), 0)
            outputs.append(output)
        return (held, inner, total + piece.shape[1]), np.concatenate(outputs, axis=1)

    def finalize(self, state: Any) -> Any:
        held, inner, total = state
        return self._run(inner, self._padded(held), held.shape[1] if total else 0)[1]

    def _padded(self, held: np.ndarray) -> np.ndarray:
        return np.pad(held, ((0, 0), (0, self._size - held.shape[1]), (0, 0)), constant_values=JUNK)

    def _run(self, inner: Any, chunk: np.ndarray, valid: int) -> tuple[Any, np.ndarray]:
        inner, output, num = self._step(inner, jnp.asarray(chunk), jnp.full(len(chunk), valid))
        return inner, np.asarray(output)[:, : int(num[0])]
