"""The contract of everything that can stream: any cut of the input gives what one pass gives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


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
