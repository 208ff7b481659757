"""Greedy decoding of CTC posteriors."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import BLANK


def best_path(
    logits_BxTxV: Float[Array, "batch time vocab"], length_B: Int[Array, " batch"]
) -> Int[Array, "batch time"]:
    """Returns the most probable id per frame, the blank at padding. Jit it with the model, to transfer ids only."""
    inside = jnp.arange(logits_BxTxV.shape[1]) < length_B[:, None]
    return jnp.where(inside, jnp.argmax(logits_BxTxV, axis=-1), BLANK)


def collapse(path_BxT: Int[np.ndarray, "batch time"]) -> list[list[int]]:
    """Returns token ids per row: merges runs of one id, then removes blanks (Graves et al. 2006, section 3.1)."""
    path = np.asarray(path_BxT)
    starts = np.ones(path.shape, bool)
    starts[:, 1:] = path[:, 1:] != path[:, :-1]
    return [row[kept].tolist() for row, kept in zip(path, starts & (path != BLANK), strict=True)]
