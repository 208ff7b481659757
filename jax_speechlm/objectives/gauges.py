"""Gauges of health that objectives share: how many codes are in use, and how many directions the hidden states fill.

All are cheap enough for every step, need no decomposition of a matrix, and stop gradients. They describe one batch and
do not add up over batches as a sum does: an objective weights each by its number of targets, so that what is logged is
the average batch's value.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LOW_ENTROPY = 0.25
"""Target codes have collapsed whose entropy is below this share of the most that a batch can show; predicted codes,
whose entropy is below this share of the targets'. Of two BEST-RQ runs on queen-en, the one that only learnt how
frequent each code is was at 0.10 where the one that learnt from context was at 0.38."""

LOW_RANK = 1.5
"""Hidden states that fill fewer directions than this have collapsed to a line."""

LOW_SPREAD = 1e-3
"""Hidden states have collapsed to a point when less than this share of their energy tells frames apart."""


def code_shares(codes: Int[Array, "..."], weight: Float[Array, "..."], num_codes: int) -> Float[Array, " codes"]:
    """The share of the weight that falls to each of `num_codes` codes; all 0 where there is no weight."""
    counts = jnp.zeros(num_codes).at[codes].add(jax.lax.stop_gradient(weight))
    return counts / jnp.maximum(jnp.sum(counts), 1e-9)


def entropy(share: Float[Array, "*books codes"]) -> Float[Array, "*books"]:
    """-sum p log p over the codes, in nats."""
    return -jnp.sum(jax.scipy.special.xlogy(share, share), axis=-1)


def perplexity(share: Float[Array, "*books codes"]) -> Float[Array, "*books"]:
    """exp(entropy): as many codes as if all that are in use were equally frequent; at least 1."""
    return jnp.exp(entropy(share))


def used(share: Float[Array, "*books codes"]) -> Float[Array, "*books"]:
    """The share of the codes that occur at all."""
    return jnp.mean(share > 0, axis=-1)


def most_entropy(num_targets: Float[Array, ""], num_codes: int) -> Float[Array, ""]:
    """The most entropy in nats that so many targets can show over so many codes."""
    return jnp.log(jnp.clip(num_targets, 2, num_codes))


def of_codes(
    code: Int[Array, "..."], guess: Int[Array, "..."], weight: Float[Array, "..."], num_codes: int
) -> dict[str, Float[Array, ""]]:
    """How the codes that frames have to be given, and those that they are given, are spread.

    Args:
      code, guess: of each frame.
      weight: what each frame counts.

    Returns:
      `code_entropy` in nats, `code_entropy_ratio` (to the most that so many frames and codes can have) and `codes_used`
      (share of all codes); of the guesses `predicted_code_entropy` and `predicted_codes_used`.
    """
    share, predicted = (code_shares(codes, weight, num_codes) for codes in (code, guess))
    return {
        "code_entropy": entropy(share),
        "code_entropy_ratio": entropy(share) / most_entropy(jnp.sum(weight), num_codes),
        "codes_used": used(share),
        "predicted_code_entropy": entropy(predicted),
        "predicted_codes_used": used(predicted),
    }


def check_code_usage(metrics: Mapping[str, float], after_warmup: bool, objective: str, cause: str) -> str | None:
    """What is wrong when targets or predictions have collapsed to a few codes; else None.

    Args:
      metrics: `of_codes`', averaged over steps.
      after_warmup: whether training is long past its warm-up. Before that every model predicts few codes.
      objective: its name.
      cause: where to look when the targets have collapsed.
    """
    ratio = metrics["code_entropy_ratio"]
    if ratio < LOW_ENTROPY:
        return (
            f"{objective}'s codes have collapsed: their entropy is {ratio:.0%} of what the batches could show. {cause}"
        )
    return check_predictions(metrics, after_warmup, objective)


def check_predictions(metrics: Mapping[str, float], after_warmup: bool, objective: str) -> str | None:
    """The part of `check_code_usage` that looks at predictions."""
    ratio = metrics["predicted_code_entropy"] / max(metrics["code_entropy"], 1e-9)
    if after_warmup and ratio < LOW_ENTROPY:
        return (
            f"{objective}'s predictions have collapsed: their entropy is {ratio:.0%} of the targets'. The model has "
            "learnt how frequent each code is and little from context: start again with a lower optimizer.schedule.peak"
        )
    return None


def representation(
    hidden_BxTxD: Float[Array, "batch time dim"], weight_BxT: Float[Array, "batch time"]
) -> dict[str, Float[Array, ""]]:
    """How many directions hidden states fill, and how much they differ.

    Args:
      hidden_BxTxD: hidden states of any type.
      weight_BxT: what each frame counts, 0 in padding.

    Returns:
      `representation_rank`: the participation ratio (sum s)^2 / sum s^2 of the eigenvalues s of their covariance, from
      1 (all on a line) to the smaller of dim and frames - 1; 0 where all are equal. From traces alone: sum s is the
      trace of the covariance, sum s^2 the sum of its squared entries. Gao et al. 2017, "A theory of multineuronal
      dimensionality, dynamics and measurement".
      `representation_spread`: the share of the mean squared length that is variance between frames, from 0 to 1.
    """
    x = jax.lax.stop_gradient(hidden_BxTxD).astype(jnp.float32)
    weight = jax.lax.stop_gradient(weight_BxT)[..., None]
    total = jnp.maximum(jnp.sum(weight), 1e-9)
    mean = jnp.sum(weight * x, axis=(0, 1)) / total
    centred = jnp.sqrt(weight) * (x - mean)
    covariance = jnp.einsum("btd,bte->de", centred, centred) / total
    variance, energy = jnp.trace(covariance), jnp.sum(weight * jnp.square(x)) / total
    return {
        "representation_rank": jnp.square(variance) / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-30),
        "representation_spread": variance / jnp.maximum(energy, 1e-30),
    }


def check_representation(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """What is wrong when hidden states have collapsed to a point or a line; else None.

    Args:
      metrics: `representation`'s, averaged over steps.
      after_warmup: whether training is long past its warm-up.
    """
    rank, spread = metrics["representation_rank"], metrics["representation_spread"]
    if not after_warmup or (rank >= LOW_RANK and spread >= LOW_SPREAD):
        return None
    return (
        f"the hidden states have collapsed: they fill {rank:.1f} directions, and {spread:.2%} of their energy "
        "tells frames apart. Start again with a lower optimizer.schedule.peak"
    )
