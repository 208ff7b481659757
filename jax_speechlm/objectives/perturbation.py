"""Adversarial training of any objective: the loss of inputs or embeddings that are perturbed for the worst.

A perturbation has a bounded L2 norm. "fgm" takes one step along the gradient of the loss (Miyato et al. 2017), "pgd"
several, projected into the bound (Madry et al. 2018), "vat" the direction that changes the outputs most, which needs no
labels (Miyato et al. 2018, virtual adversarial training).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field, PositiveFloat, PositiveInt

from jax_speechlm.core.batch import Batch, example_keys, lengths_of
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.core.tree import overlay, select
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import Metrics, Objective, mean

AUDIO = "audio"
"""`Perturbation.of` for the samples of speech."""

_SMALL = 1e-20  # squared norms below it count as zero
_PROBE = 0.1  # of the bound: size of the differences from which "vat" estimates its direction


class Perturbation(Config):
    """Settings of adversarial training.

    Attributes:
      method: "none", "fgm", "pgd" or "vat"; the last needs an objective with token posteriors, such as CTC.
      of: "audio", or the path of parameters, such as "transformer/embedding".
      size: bound of the norm, relative to that of the utterance's samples (0.1 is an SNR of 20 dB) or of each
        parameter.
      steps: gradient steps of "pgd" and power iterations of "vat".
      share: share of the perturbed loss in the total; with "vat" the weight of the divergence, which is added.
    """

    method: Literal["none", "fgm", "pgd", "vat"] = "none"
    of: str = AUDIO
    size: PositiveFloat = 0.03
    steps: PositiveInt = 1
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


Point = Params  # what is perturbed: {"audio": samples}, or a part of the parameters


def perturbed(objective: Objective, settings: Perturbation) -> Objective:
    """Returns an objective whose loss in training includes that of its perturbed inputs; evaluation is as it was.

    Metrics gain `adversarial`: the perturbed loss, or the divergence of "vat" in nats a frame.

    Raises:
      ValueError: "vat" for an objective without token posteriors.
    """
    if settings.method == "none":
        return objective
    if settings.method == "vat" and objective.logits is None:
        raise ValueError(
            "perturbation.method vat compares token posteriors, which this objective does not have: choose fgm or pgd"
        )
    passes = 3 if settings.method == "fgm" else 2 + settings.steps  # forward and backward, the clean one included
    return dataclasses.replace(
        objective,
        loss=functools.partial(_loss, objective, settings),
        batch_flops=lambda batch: passes * objective.flops(batch),
    )


def _loss(
    objective: Objective, settings: Perturbation, params: Params, batch: Batch, key: PRNGKeyArray | None
) -> tuple[Float[Array, ""], Metrics]:
    clean, metrics = objective.loss(params, batch, key)
    if key is None:
        return clean, metrics
    space = _Space(settings, params, batch)
    # The same key: augmentation and dropout are those of the clean loss, and the gradient is of the loss that is added.
    if settings.method == "vat":
        value, weight = _virtual(objective, settings, space, key)
        _, targets = metrics["loss"]
        loss = clean + settings.share * mean(value, weight)
        return loss, metrics | {"adversarial": (value, weight), "loss": (loss * targets, targets)}

    def loss_at(delta: Point) -> tuple[Float[Array, ""], Metrics]:
        return objective.loss(*space.at(delta), key)

    adversarial, other = loss_at(jax.lax.stop_gradient(_ascend(lambda delta: loss_at(delta)[0], settings, space)))
    (first, targets), (second, _) = metrics["loss"], other["loss"]
    mixed = (1 - settings.share) * first + settings.share * second
    loss = (1 - settings.share) * clean + settings.share * adversarial
    return loss, metrics | {"adversarial": other["loss"], "loss": (mixed, targets)}


def _ascend(loss: Callable[[Point], Float[Array, ""]], settings: Perturbation, space: "_Space") -> Point:
    """Returns a perturbation of the bound's size that raises a loss."""
    if settings.method == "fgm":
        return space.scaled(jax.grad(loss)(space.zero), 1.0)
    stride = 1.5 / settings.steps  # further than the bound in all, so that it is reached on a bent path

    def step(delta: Point, _) -> tuple[Point, None]:
        ascent = space.scaled(jax.grad(loss)(delta), stride)
        return space.projected(jax.tree.map(jnp.add, delta, ascent)), None

    return jax.lax.scan(step, space.zero, length=settings.steps)[0]


def _virtual(
    objective: Objective, settings: Perturbation, space: "_Space", key: PRNGKeyArray
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum over frames of KL(clean || perturbed), and the number of frames."""
    logits, lengths = objective.logits(*space.at(space.zero))
    segments = Segments.of(lengths)
    frames_BxT = segments.mask(logits.shape[1])
    clean = jax.lax.stop_gradient(jax.nn.log_softmax(logits.astype(jnp.float32)))

    def divergence(delta: Point) -> Float[Array, ""]:
        other = jax.nn.log_softmax(objective.logits(*space.at(delta))[0].astype(jnp.float32))
        return jnp.sum(jnp.where(frames_BxT, jnp.sum(jnp.exp(clean) * (clean - other), -1), 0))

    def iterate(delta: Point, _) -> tuple[Point, None]:
        return space.scaled(jax.grad(divergence)(delta), _PROBE), None

    delta = jax.lax.scan(iterate, space.scaled(space.noise(key), _PROBE), length=settings.steps)[0]
    delta = jax.lax.stop_gradient(space.scaled(delta, 1.0))
    return divergence(delta), jnp.sum(frames_BxT, dtype=jnp.float32)


class _Space:
    """The perturbations of a batch's samples, or of some parameters, with their norms."""

    def __init__(self, settings: Perturbation, params: Params, batch: Batch):
        """Raises ValueError if there is nothing to perturb."""
        self._params, self._batch, self._of = params, batch, settings.of
        self._is_audio = settings.of == AUDIO
        if self._is_audio:
            if AUDIO not in batch:
                raise ValueError("perturbation.of is audio, and the batch has none: name parameters")
            self._segments = Segments.of(lengths_of(batch))
            self._point = {AUDIO: batch[AUDIO].astype(jnp.float32)}
        else:
            self._point = select(params, (settings.of,))
            if not self._point:
                raise ValueError(
                    f"perturbation.of: no parameter lies below {settings.of!r}; top level: {sorted(params)}"
                )
        self._point = jax.lax.stop_gradient(self._point)
        self._bound = jax.tree.map(lambda squares: settings.size * jnp.sqrt(squares), self._squares(self._point))
        self.zero = jax.tree.map(jnp.zeros_like, self._point)

    def at(self, delta: Point) -> tuple[Params, Batch]:
        """Returns parameters and batch with a perturbation added."""
        if self._is_audio:
            return self._params, {**self._batch, AUDIO: self._point[AUDIO] + delta[AUDIO]}
        own = jax.tree.map(jnp.add, select(self._params, (self._of,)), delta)
        return overlay(self._params, own), self._batch

    def scaled(self, delta: Point, share: float) -> Point:
        """Returns a perturbation with the bound's norm, times `share`; 0 where it is 0 everywhere."""
        factor = jax.tree.map(
            lambda squares, bound: share * bound * jnp.where(squares > _SMALL, jax.lax.rsqrt(squares + _SMALL), 0),
            self._squares(delta),
            self._bound,
        )
        return self._times(delta, factor)

    def projected(self, delta: Point) -> Point:
        """Returns a perturbation, shortened to the bound's norm where it is longer."""
        factor = jax.tree.map(
            lambda squares, bound: jnp.minimum(1.0, bound * jax.lax.rsqrt(jnp.maximum(squares, _SMALL))),
            self._squares(delta),
            self._bound,
        )
        return self._times(delta, factor)

    def noise(self, key: PRNGKeyArray) -> Point:
        """Draws normal noise; that of an utterance depends on its example_id alone."""
        if not self._is_audio:
            leaves, structure = jax.tree.flatten(self._point)
            keys = jax.random.split(key, len(leaves))
            drawn = [jax.random.normal(own, leaf.shape) for own, leaf in zip(keys, leaves, strict=True)]
            return jax.tree.unflatten(structure, drawn)
        rows, num_samples = self._point[AUDIO].shape
        keys_BxN = example_keys(key, self._batch["example_id"].reshape(rows, -1))
        drawn_BxNxS = jax.vmap(jax.vmap(lambda own: jax.random.normal(own, (num_samples,))))(keys_BxN)
        position_BxS = jnp.maximum(self._segments.position(num_samples), 0)
        index_BxS = jnp.maximum(self._segments.segment(num_samples) - 1, 0)
        return {AUDIO: drawn_BxNxS[jnp.arange(rows)[:, None], index_BxS, position_BxS]}

    def _squares(self, tree: Point) -> Point:
        """Returns squared norms: of each utterance, [batch, utterances], or of each parameter."""
        if self._is_audio:
            return {AUDIO: self._segments.sum(jnp.square(tree[AUDIO]))}
        return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), tree)

    def _times(self, tree: Point, factor: Point) -> Point:
        if self._is_audio:
            return {AUDIO: tree[AUDIO] * self._segments.spread(factor[AUDIO], tree[AUDIO].shape[1])}
        return jax.tree.map(jnp.multiply, tree, factor)
