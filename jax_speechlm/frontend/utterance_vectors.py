"""A vector of MFCCs for each utterance, the input of classifiers that take no sequences."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.mfcc import COEFFICIENTS, mfcc

VectorKind = Literal["statistics", "sequence"]
"""Mean and standard deviation over the utterance, or its course at equal distances."""

_POINTS = 20  # of a course


def utterance_vectors(
    batch: Batch, kind: VectorKind, sample_rate: int
) -> tuple[Float[Array, "batch dim"], Int[Array, " batch"]]:
    """Computes a vector for each row of a batch.

    "statistics" are mean and standard deviation of 13 MFCCs with first and second differences. "sequence" has 13
    MFCCs, of zero mean and unit variance over the utterance, at 20 points at equal distances from the first frame to
    the last, linearly interpolated, so that utterances of any length and speed are compared part by part.

    Returns:
      The vectors, 0 for rows without a frame, and the number of frames per row.
    """
    mel = LogMel(sample_rate=sample_rate, normalize=kind == "sequence")
    x_BxTxF, length_B = mfcc(batch["audio"], batch["audio_length"], mel)
    if kind == "statistics":
        inside_BxTx1, count_Bx1 = frame_mask(length_B, x_BxTxF.shape[1])[..., None], jnp.maximum(length_B, 1)[:, None]
        mean_BxF = jnp.sum(jnp.where(inside_BxTx1, x_BxTxF, 0), 1) / count_Bx1
        deviations_BxTxF = jnp.where(inside_BxTx1, x_BxTxF - mean_BxF[:, None], 0)
        return jnp.concatenate([mean_BxF, jnp.sqrt(jnp.sum(deviations_BxTxF**2, 1) / count_Bx1)], -1), length_B
    last_B = jnp.maximum(length_B - 1, 0)
    place_BxP = jnp.linspace(0.0, 1.0, _POINTS) * last_B[:, None]
    before_BxP = jnp.floor(place_BxP).astype(jnp.int32)
    after_BxP = jnp.minimum(before_BxP + 1, last_B[:, None])
    static_BxTxC = x_BxTxF[..., :COEFFICIENTS]
    first, second = (jnp.take_along_axis(static_BxTxC, at[..., None], axis=1) for at in (before_BxP, after_BxP))
    share_BxPx1 = (place_BxP - before_BxP)[..., None]
    course_BxPxC = first * (1 - share_BxPx1) + second * share_BxPx1
    return jnp.where(length_B[:, None] > 0, course_BxPxC.reshape(len(length_B), -1), 0), length_B
