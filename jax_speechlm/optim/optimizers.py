"""Configs of learning rate schedules and optimizers, built with Optax."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pydantic
from jaxtyping import Array, Int

from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import is_below, paths
from jax_speechlm.nn.functional import Params
from jax_speechlm.optim.privacy import Privacy

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


class Ramp(Config):
    """Exponential rise from `lowest` to `peak` at the last step: the learning rate range test (Smith 2017).

    Attributes:
      lowest, peak: first and last learning rate.
    """

    kind: Literal["ramp"] = "ramp"
    lowest: pydantic.PositiveFloat = 1e-7
    peak: pydantic.PositiveFloat = 1.0

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: none."""
        return 0

    def build(self, num_steps: int) -> optax.Schedule:
        """Returns the schedule of a run of `num_steps`."""
        return lambda step: self.lowest * (self.peak / self.lowest) ** (step / max(1, num_steps - 1))


def _after_warmup(peak: float, warmup_steps: int, schedule: optax.Schedule) -> optax.Schedule:
    # The schedule is called with step 0 first: starting at one increment avoids a first step at a rate of zero.
    warmup = optax.linear_schedule(peak / max(1, warmup_steps), peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, schedule], [warmup_steps])


Schedule = Annotated[WarmupCosine | Noam | WSD | Ramp, pydantic.Field(discriminator="kind")]


class UpdateRule(Config):
    """Settings of the optimizer itself: how gradients become updates.

    Attributes:
      kind: "adamw", "adam" (AdamW without decay) or "sgd" (with momentum b1 and decay).
      schedule: of the learning rate.
      b1, b2, eps: of Adam.
      weight_decay: decoupled; applies to weights and embeddings, not to biases, scales of norms and single learnt
        vectors (`nn.functional.parameter`).
      clip_norm: greatest global norm of gradients; larger gradients are scaled down.
    """

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Schedule = WarmupCosine()
    b1: Share = 0.9
    b2: Share = 0.98
    eps: pydantic.PositiveFloat = 1e-8
    weight_decay: pydantic.NonNegativeFloat = 1e-2
    clip_norm: pydantic.PositiveFloat = 1.0

    def _chain(
        self, num_steps: int, decays: Params, scale: optax.GradientTransformation | None = None
    ) -> optax.GradientTransformation:
        """Builds the Optax transformation; `scale` applies to the updates before the learning rate does."""
        inner = optax.trace(self.b1) if self.kind == "sgd" else optax.scale_by_adam(self.b1, self.b2, self.eps)
        decay = 0.0 if self.kind == "adam" else self.weight_decay
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            inner,
            optax.add_decayed_weights(decay, decays) if decay else optax.identity(),
            scale or optax.identity(),
            optax.scale_by_learning_rate(self.schedule.build(num_steps)),
        )


class Group(Config):
    """Settings of a group of parameters.

    Attributes:
      prefix: path prefix of the parameters, such as "encoder" or "encoder/layers".
      learning_rate_scale: factor on the schedule.
      start_step: first step at which they are updated.
      every: steps from one update to the next, counted from `start_step`; other than 1 needs `optimizer`. Two groups
        with `every` 2 that start at steps 0 and 1 are updated alternately.
      optimizer: an optimizer of their own, whose gradient norm, moments and schedule are of these parameters alone and
        do not change in steps without an update; None shares the run's.
    """

    prefix: str
    learning_rate_scale: pydantic.NonNegativeFloat = 1.0
    start_step: pydantic.NonNegativeInt = 0
    every: pydantic.PositiveInt = 1
    optimizer: UpdateRule | None = None

    @pydantic.model_validator(mode="after")
    def _has_one_learning_rate(self):
        if self.optimizer is None and self.every != 1:
            raise ValueError(
                f"the group {self.prefix} is updated every {self.every} steps, which needs an optimizer of its own: "
                "set its `optimizer`"
            )
        if self.optimizer is not None and self.learning_rate_scale != 1.0:
            raise ValueError(
                f"the group {self.prefix} has an optimizer of its own: set its optimizer.schedule.peak instead of "
                "learning_rate_scale"
            )
        return self

    @classmethod
    def assigned(cls, prefix: str) -> "Group":
        """Returns a group that a loss sets: plain SGD at rate 1 replaces x by y if the gradient is x - y."""
        constant = WarmupCosine(peak=1.0, warmup_steps=0, final_share=1.0)
        rule = UpdateRule(kind="sgd", schedule=constant, b1=0.0, weight_decay=0.0, clip_norm=1e30)
        return cls(prefix=prefix, optimizer=rule)

    @property
    def assigns(self) -> bool:
        """Whether the loss sets the group's parameters."""
        return self == self.assigned(self.prefix)

    def num_updates(self, num_steps: int) -> int:
        """Returns the number of updates in a run of `num_steps`, at least 1."""
        return max(1, -(-(num_steps - self.start_step) // self.every))


class Optimizer(UpdateRule):
    """Settings of the optimizer and of gradients.

    Attributes:
      frozen: path prefixes of parameters that are not trained; they have no gradients and no moments.
      groups: parameters with another learning rate, a later start, or an optimizer of their own.
      accumulate: micro-batches per batch. They save memory without changing the result, except in wav2vec 2.0 and
        w2v-BERT, where the diversity of codes is then computed over a micro-batch instead of the whole batch, and in a
        codec, where each micro-batch proposes averages of the codebook.
      ema_decay: of the exponential moving average of parameters, which evaluation uses; 0 for none.
      privacy: differentially private gradients, none by default.
    """

    frozen: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    accumulate: pydantic.PositiveInt = 1
    ema_decay: Share = 0.0
    privacy: Privacy = Privacy()

    @property
    def separate(self) -> tuple[Group, ...]:
        """Returns the groups that have an optimizer of their own."""
        return tuple(group for group in self.groups if group.optimizer is not None)

    def build(self, num_steps: int, decays: Params) -> optax.GradientTransformation:
        """Builds the Optax transformation.

        Args:
          decays: nested dict of the trainable parameters: whether weight decay applies to each.

        Raises:
          ValueError: no parameter is in one of the groups, or two groups with optimizers of their own overlap.
        """
        names = paths(decays)
        for group in self.groups:
            if not any(is_below(name, group.prefix) for name in names):
                raise ValueError(f"optimizer.groups: no parameter below {group.prefix!r}; choose from {sorted(names)}")
        shared = tuple(group for group in self.groups if group.optimizer is None)
        scale = _scale_groups(shared, decays) if shared else None
        if not self.separate:
            return self._chain(num_steps, decays, scale)

        owners = [_owner(name, self.separate) for name in names]
        labels = jax.tree.unflatten(jax.tree.structure(decays), owners)

        def part(owner: str) -> Params:
            return jax.tree.map(lambda own, label: own if label == owner else optax.MaskedNode(), decays, labels)

        transforms = {
            group.prefix: _at_steps(group.optimizer._chain(group.num_updates(num_steps), part(group.prefix)), group)
            for group in self.separate
        }
        partitioned = optax.partition({**transforms, "": self._chain(num_steps, part(""))}, labels)
        return optax.chain(partitioned, scale) if scale else partitioned


def _owner(name: str, groups: tuple[Group, ...]) -> str:
    """Returns the prefix of the group that a parameter belongs to, "" if it is in none."""
    owners = [group.prefix for group in groups if is_below(name, group.prefix)]
    if len(owners) > 1:
        raise ValueError(f"optimizer.groups: {name} is in {owners[0]} and in {owners[1]}, which both have an optimizer")
    return owners[0] if owners else ""


class _AtSteps(NamedTuple):
    step: Int[Array, ""]
    inner: optax.OptState


def _at_steps(inner: optax.GradientTransformation, group: Group) -> optax.GradientTransformation:
    """Applies `inner` at the steps of a group; at others the updates are 0 and its state stays as it is."""

    def init(params: optax.Params) -> _AtSteps:
        return _AtSteps(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates, state: _AtSteps, params=None) -> tuple[optax.Updates, _AtSteps]:
        since = state.step - group.start_step
        active = (since >= 0) & (since % group.every == 0)
        updates, after = inner.update(updates, state.inner, params)
        updates = jax.tree.map(lambda update: jnp.where(active, update, jnp.zeros_like(update)), updates)
        kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, state.inner)
        return updates, _AtSteps(state.step + 1, kept)

    return optax.GradientTransformation(init, update)


def _scale_groups(groups: tuple[Group, ...], like: Params) -> optax.GradientTransformation:
    names, treedef = paths(like), jax.tree.structure(like)

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
