"""Diagnostics shared by objectives: code usage, and effective dimension of the hidden states.

All are cheap enough for every step (no matrix decomposition) and stop gradients. They describe a single batch and are
not additive: objectives weight each by its number of targets, so the logged value is the average over batches.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LOW_ENTROPY = 0.25
"""Collapse threshold: entropy of target codes relative to a batch's maximum, or of predicted codes relative to the
targets'. Of two BEST-RQ runs on queen-en, one that learnt only the code frequencies was at 0.10, one that learnt from
context at 0.38."""

LOW_RANK = 1.5
"""Hidden states with a lower `representation_rank` have collapsed to a line."""

LOW_SPREAD = 1e-3
"""Hidden states with a lower `representation_spread` have collapsed to a point."""


def code_shares(codes: Int[Array, "..."], weight: Float[Array, "..."], num_codes: int) -> Float[Array, " codes"]:
    """Returns the share of the weight on each of `num_codes` codes; all 0 if the total weight is 0."""
    counts = jnp.zeros(num_codes).at[codes].add(jax.lax.stop_gradient(weight))
    return counts / jnp.maximum(jnp.sum(counts), 1e-9)


def entropy(share: Float[Array, "*books codes"]) -> Float[Array, "*books"]:
    """Returns -sum p log p over the codes, in nats."""
    return -jnp.sum(jax.scipy.special.xlogy(share, share), axis=-1)


def perplexity(share: Float[Array, "*books codes"]) -> Float[Array, "*books"]:
    """Returns exp(entropy), the effective number of equally frequent codes; at least 1."""
    return jnp.exp(entropy(share))


def used(share: Float[Array, "*books codes"]) -> Float[Array, "*books"]:
    """Returns the share of codes that occur."""
    return jnp.mean(share > 0, axis=-1)


def most_entropy(num_targets: Float[Array, ""], num_codes: int) -> Float[Array, ""]:
    """Returns the maximum entropy (nats) of `num_targets` targets over `num_codes` codes."""
    return jnp.log(jnp.clip(num_targets, 2, num_codes))


def of_codes(
    code: Int[Array, "..."], guess: Int[Array, "..."], weight: Float[Array, "..."], num_codes: int
) -> dict[str, Float[Array, ""]]:
    """Computes usage metrics of the target and predicted code (`guess`) of each frame.

    Returns:
      `code_entropy` in nats, `code_entropy_ratio` (to the maximum for this number of frames and codes) and `codes_used`
      (share of all codes); for the predictions `predicted_code_entropy` and `predicted_codes_used`.
    """
    share, predicted = (code_shares(codes, weight, num_codes) for codes in (code, guess))
    return {
        "code_entropy": entropy(share),
        "code_entropy_ratio": entropy(share) / most_entropy(jnp.sum(weight), num_codes),
        "codes_used": used(share),
        "predicted_code_entropy": entropy(predicted),
        "predicted_codes_used": used(predicted),
    }


def per_batch(values: Mapping[str, Float[Array, ""]], weight: Float[Array, ""]) -> dict[str, tuple[Array, Array]]:
    """Returns gauges of a batch as metrics with the batch's weight."""
    return {name: (weight * value, weight) for name, value in values.items()}


def check_code_usage(metrics: Mapping[str, float], after_warmup: bool, objective: str, cause: str) -> str | None:
    """Returns a warning if targets or predictions have collapsed to a few codes, else None.

    Args:
      metrics: metrics of `of_codes`, averaged over steps.
      after_warmup: whether training is long past its warm-up. Before, every model predicts few codes.
      cause: likely cause of collapsed targets, for the message.
    """
    ratio = metrics["code_entropy_ratio"]
    if ratio < LOW_ENTROPY:
        return (
            f"{objective}'s codes have collapsed: their entropy is {ratio:.0%} of what the batches could show. {cause}"
        )
    return check_predictions(metrics, after_warmup, objective)


def check_predictions(metrics: Mapping[str, float], after_warmup: bool, objective: str) -> str | None:
    """Returns the warning of `check_code_usage` about predictions, or None."""
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
    """Measures effective dimension and spread of hidden states of any dtype; the weight is 0 in padding.

    Returns:
      `representation_rank`: the participation ratio (sum s)^2 / sum s^2 of the eigenvalues s of their covariance, from
      1 (all on a line) to min(dim, frames - 1); 0 if all are equal. Computed from traces: sum s is the trace of the
      covariance, sum s^2 the sum of its squared entries. Gao et al. 2017, "A theory of multineuronal dimensionality,
      dynamics and measurement".
      `representation_spread`: the share of the mean squared norm that is variance between frames, from 0 to 1.
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
    """Returns a warning if hidden states have collapsed to a point or a line, from averages of `representation`."""
    rank, spread = metrics["representation_rank"], metrics["representation_spread"]
    if not after_warmup or (rank >= LOW_RANK and spread >= LOW_SPREAD):
        return None
    return (
        f"the hidden states have collapsed: they fill {rank:.1f} directions, and {spread:.2%} of their energy "
        "tells frames apart. Start again with a lower optimizer.schedule.peak"
    )
