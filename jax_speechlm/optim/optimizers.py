"""Configs of learning rate schedules and optimizers, built with Optax."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
import pydantic

from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import is_below, paths
from jax_speechlm.nn.functional import Params

Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class WarmupCosine(Config):
    """Linear warm-up to `peak`, then cosine decay to `final_share * peak` at the last step."""

    kind: Literal["warmup_cosine"] = "warmup_cosine"
    peak: pydantic.PositiveFloat = 1e-3
    warmup_steps: pydantic.NonNegativeInt = 200
    final_share: Share = 0.05

    def build(self, num_steps: int) -> optax.Schedule:
        """Returns the schedule of a run of `num_steps`."""
        decay = optax.cosine_decay_schedule(self.peak, max(1, num_steps - self.warmup_steps), self.final_share)
        return _after_warmup(self.peak, self.warmup_steps, decay)


class Noam(Config):
    """Linear warm-up to `peak`, then peak * sqrt(warmup / step) (Vaswani et al. 2017, section 5.3)."""

    kind: Literal["noam"] = "noam"
    peak: pydantic.PositiveFloat = 1e-3
    warmup_steps: pydantic.PositiveInt = 1000

    def build(self, num_steps: int) -> optax.Schedule:
        """Returns the schedule, which does not depend on the run's length."""
        del num_steps

        def decay(step: jax.typing.ArrayLike) -> jax.Array:  # also called with negative steps, whose value is not used
            return self.peak * (self.warmup_steps / (jnp.maximum(step, 0) + self.warmup_steps)) ** 0.5

        return _after_warmup(self.peak, self.warmup_steps, decay)


class WSD(Config):
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): constant at `peak`, then linear decay to 0.

    Attributes:
      peak: greatest learning rate.
      warmup_steps: steps of linear warm-up.
      decay_share: share of the run's steps in which the rate decays.
    """

    kind: Literal["wsd"] = "wsd"
    peak: pydantic.PositiveFloat = 1e-3
    warmup_steps: pydantic.NonNegativeInt = 200
    decay_share: Share = 0.2

    def build(self, num_steps: int) -> optax.Schedule:
        """Returns the schedule of a run of `num_steps`."""
        decay_steps = max(1, int(self.decay_share * num_steps))
        decay = optax.linear_schedule(self.peak, 0.0, decay_steps, max(0, num_steps - self.warmup_steps - decay_steps))
        return _after_warmup(self.peak, self.warmup_steps, decay)


def _after_warmup(peak: float, warmup_steps: int, schedule: optax.Schedule) -> optax.Schedule:
    # The schedule is called with step 0 first: starting at one increment avoids a first step at a rate of zero.
    warmup = optax.linear_schedule(peak / max(1, warmup_steps), peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, schedule], [warmup_steps])


Schedule = Annotated[WarmupCosine | Noam | WSD, pydantic.Field(discriminator="kind")]


class Group(Config):
    """Settings of a group of parameters.

    Attributes:
      prefix: path prefix of the parameters, such as "encoder" or "encoder/layers".
      learning_rate_scale: factor on the schedule.
      start_step: first step at which they are updated.
    """

    prefix: str
    learning_rate_scale: pydantic.NonNegativeFloat = 1.0
    start_step: pydantic.NonNegativeInt = 0


class Optimizer(Config):
    """Settings of the optimizer and of gradients.

    Attributes:
      kind: "adamw", "adam" (AdamW without decay) or "sgd" (with momentum b1 and decay).
      schedule: of the learning rate.
      b1, b2, eps: of Adam.
      weight_decay: decoupled; applies to weights and embeddings, not to biases, scales of norms and single learnt
        vectors (`nn.functional.parameter`).
      clip_norm: greatest global norm of gradients; larger gradients are scaled down.
      frozen: path prefixes of parameters that are not trained; they have no gradients and no moments.
      groups: parameters with another learning rate or a later start.
      accumulate: micro-batches per batch. They save memory without changing the result, except in wav2vec 2.0 and
        w2v-BERT, where the diversity of codes is then computed over a micro-batch instead of the whole batch.
      ema_decay: of the exponential moving average of parameters, which evaluation uses; 0 for none.
    """

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Schedule = WarmupCosine()
    b1: Share = 0.9
    b2: Share = 0.98
    eps: pydantic.PositiveFloat = 1e-8
    weight_decay: pydantic.NonNegativeFloat = 1e-2
    clip_norm: pydantic.PositiveFloat = 1.0
    frozen: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    accumulate: pydantic.PositiveInt = 1
    ema_decay: Share = 0.0

    def build(self, num_steps: int, decays: Params) -> optax.GradientTransformation:
        """Builds the Optax transformation.

        Args:
          decays: nested dict of the trainable parameters: whether weight decay applies to each.

        Raises:
          ValueError: no parameter is in one of the groups.
        """
        inner = optax.trace(self.b1) if self.kind == "sgd" else optax.scale_by_adam(self.b1, self.b2, self.eps)
        decay = 0.0 if self.kind == "adam" else self.weight_decay
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            inner,
            optax.add_decayed_weights(decay, decays) if decay else optax.identity(),
            _scale_groups(self.groups, decays) if self.groups else optax.identity(),
            optax.scale_by_learning_rate(self.schedule.build(num_steps)),
        )


def _scale_groups(groups: tuple[Group, ...], like: Params) -> optax.GradientTransformation:
    names = paths(like)
    for group in groups:
        if not any(is_below(name, group.prefix) for name in names):
            raise ValueError(f"optimizer.groups: no parameter below {group.prefix!r}; choose from {sorted(names)}")
    treedef = jax.tree.structure(like)

    def scale(step: jax.Array, name: str) -> jax.Array | float:
        factor: jax.Array | float = 1.0
        for group in groups:
            if is_below(name, group.prefix):
                factor = factor * group.learning_rate_scale * (step >= group.start_step)
        return factor

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params
        factors = jax.tree.unflatten(treedef, [scale(state.count, name) for name in names])
        scaled = jax.tree.map(lambda update, factor: update * factor, updates, factors)
        return scaled, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)
