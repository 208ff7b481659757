"""Differentially private gradients: clipped by example, summed, with Gaussian noise (DP-SGD, Abadi et al. 2016)."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import pydantic
from jaxtyping import PRNGKeyArray

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.nn.functional import Params

_NOISE = 0x64707367  # derives the key of the noise from a step's


class Privacy(Config):
    """Settings of differentially private training; a row of a batch, one utterance, is an example.

    Attributes:
      noise_multiplier: standard deviation of the noise relative to `clip_norm`; 0 trains without privacy.
      clip_norm: greatest norm of the gradient of an example.
      delta: probability with which the guarantee may fail; well below 1 / number of utterances.
    """

    noise_multiplier: pydantic.NonNegativeFloat = 0.0
    clip_norm: pydantic.PositiveFloat = 1.0
    delta: Annotated[float, pydantic.Field(gt=0, lt=1)] = 1e-5

    def check(self, data: Config, objective: Any) -> None:
        """Raises ValueError if a row of a batch is no example of its own."""
        if not self.noise_multiplier:
            return
        reason = None
        if data.kind != "speech":
            reason = "takes utterances as examples: train on speech alone"
        elif data.packed:
            reason = "clips the gradient of each row, which has to be one utterance: set --data.packed False"
        elif data.joined:
            reason = "takes each utterance once in an epoch: set --data.joined 0"
        elif objective.couples_rows:
            reason = f"needs a loss that is a sum over examples, which {objective.kind} has not"
        if reason:
            raise ValueError(f"optimizer.privacy {reason}")

    def spent(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        """Returns the epsilon of the parameters after a number of steps (`epsilon_of_epochs`), for the log."""
        epochs = -(-step // steps_per_epoch)
        return {"epsilon": epsilon_of_epochs(self.noise_multiplier, epochs, self.delta)}

    def describe(self, step: int, steps_per_epoch: int) -> str:
        """Describes what the parameters after a number of steps reveal of an utterance."""
        certain = self.spent(step, steps_per_epoch)["epsilon"]
        text = f"privacy of an utterance at delta {self.delta:g}: epsilon {certain:.2f}"
        sampled = epsilon_of_samples(self.noise_multiplier, step, steps_per_epoch, self.delta)
        if sampled is None:
            return f"{text} (pip install 'jax_speechlm[privacy]' adds the figure of Poisson sampling)"
        return f"{text}; {sampled:.2f} if batches were drawn by Poisson sampling"


def private_gradient(
    gradient: Callable[[Batch], tuple[Params, Any]], batch: Batch, settings: Privacy, key: PRNGKeyArray, parts: int = 1
) -> tuple[Params, Any]:
    """Computes the mean gradient of a batch's rows, each clipped, with noise.

    Args:
      gradient: `batch of one row -> (gradient, metrics)`; metrics are pytrees of sums.
      key: of the step.
      parts: micro-batches, which the gradients of single rows are computed in; affects memory alone.

    Returns:
      (sum of the clipped gradients + noise) / rows, and the sum of the metrics. A gradient that is not finite counts as
      0: a step that is skipped for it would depend on the example.
    """
    rows = len(next(iter(batch.values())))
    if rows % parts:
        raise ValueError(f"optimizer.accumulate={parts} does not divide a batch of {rows} rows")

    def of_row(row: Batch) -> tuple[Params, Any]:
        grads, metrics = gradient({name: value[None] for name, value in row.items()})
        norm = optax.global_norm(grads)
        factor = jnp.where(jnp.isfinite(norm), jnp.minimum(1.0, settings.clip_norm / jnp.maximum(norm, 1e-12)), 0.0)
        grads = jax.tree.map(lambda leaf: jnp.where(factor > 0, leaf * factor, 0.0), grads)
        return grads, jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0.0), metrics)

    def of_part(part: Batch) -> tuple[Params, Any]:
        return jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(of_row)(part))

    # Strided, so that every device keeps a share of each micro-batch.
    cut = {name: jnp.swapaxes(value.reshape(-1, parts, *value.shape[1:]), 0, 1) for name, value in batch.items()}
    first = {name: value[0] for name, value in cut.items()}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_part, first))
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, of_part(part)), None), zeros, cut)
    grads, metrics = total
    leaves, structure = jax.tree.flatten(grads)
    keys = jax.random.split(jax.random.fold_in(key, _NOISE), len(leaves))
    deviation = settings.noise_multiplier * settings.clip_norm
    noisy = [
        (leaf + deviation * jax.random.normal(own, leaf.shape, leaf.dtype)) / rows
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy), metrics


def epsilon_of_epochs(noise_multiplier: float, epochs: int, delta: float) -> float:
    """Returns the epsilon of releases of which each example is in one an epoch, whatever the order of the examples.

    The composition of Gaussian mechanisms is one of sensitivity sqrt(epochs) / noise_multiplier, whose epsilon is exact
    (Balle and Wang 2018, theorem 8). In a neighbouring data set one utterance has no gradient (zero-out adjacency,
    Kairouz et al. 2021), so the plan of the batches is the same.
    """
    ratio = math.sqrt(epochs) / noise_multiplier
    if not ratio:
        return 0.0

    def excess(epsilon: float) -> float:
        upper, lower = ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio
        return _normal(upper) - math.exp(min(epsilon + _log_normal(lower), 700.0)) - delta

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return 0.0
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def epsilon_of_samples(noise_multiplier: float, steps: int, steps_per_epoch: int, delta: float) -> float | None:
    """Returns the epsilon that would hold if each step drew every example with the probability 1 / steps_per_epoch.

    It is the customary figure, and an idealisation: batches here are of a shuffled epoch. None without dp-accounting.
    """
    try:
        import dp_accounting
        from dp_accounting import pld
    except ImportError:
        return None
    release = dp_accounting.PoissonSampledDpEvent(1 / steps_per_epoch, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(release, steps))
    return float(accountant.get_epsilon(delta))


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_normal(x: float) -> float:
    """Returns the logarithm of the standard normal distribution function."""
    if x > -30:
        return math.log(_normal(x))
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi))  # its leading term; the error is below 1 / x**2
