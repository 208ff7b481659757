"""The train state and the train step, as pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from jax_speechlm.core.batch import Batch, step_key
from jax_speechlm.core.tree import overlay, select
from jax_speechlm.decoding.ctc.greedy import best_path
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import Metrics, Objective
from jax_speechlm.optim.optimizers import Optimizer
from jax_speechlm.optim.privacy import private_gradient
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.compiler_options import options_for

STEP_METRICS = ("grad_norm", "learning_rate", "skipped_in_a_row")
"""Metrics of the step itself, common to all objectives."""


class TrainState(NamedTuple):
    """The state that a run carries from step to step. A checkpoint adds only its `meta`.

    Attributes:
      step: steps taken, skipped ones included; with the seed it determines the next batch and the next key.
      params: nested dict of all parameters, frozen ones included.
      opt_state: Optax's state of the trainable parameters.
      ema: moving average of the trainable parameters; an empty dict if it is off.
      skipped: total number of steps whose loss or gradient was not finite.
      skipped_in_a_row: the same since the last finite step.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


class Trainer(NamedTuple):
    """The pure functions of one experiment on one mesh, and the shardings of their state.

    Attributes:
      init: `key -> TrainState`, already sharded.
      step: `(state, batch) -> (state, metrics)`; compiled once per batch shape; donates its state argument.
      evaluate: `(params, batch) -> metrics`; compiled once per batch shape.
      greedy_decode: `(params, batch) -> ids [B, T]`, the best CTC path; None if the objective has no CTC logits.
      pictures: `(params, batch) -> pictures and waveforms by name`; None if the objective has none.
      shapes: abstract TrainState with shardings: the target of a restore, and the input of planning.
      compiler_options: of `step`.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    evaluate: Callable[[Params, Batch], Metrics]
    greedy_decode: Callable[[Params, Batch], Array] | None
    pictures: Callable[[Params, Batch], dict[str, Array]] | None
    shapes: TrainState
    compiler_options: Mapping[str, Any]


def make_trainer(
    objective: Objective,
    optimizer: Optimizer,
    num_steps: int,
    seed: int,
    mesh: Mesh,
    *,
    compiler_options: Mapping[str, Any] | None = None,
) -> Trainer:
    """Builds the train and evaluation steps.

    Args:
      compiler_options: of the train step; by default those of the mesh's chips, `options_for`.

    Raises:
      ValueError: a frozen path or a group matches no parameter.
    """
    declaration = functional.declare(objective.make)
    frozen_paths = objective.frozen + optimizer.frozen
    for path in frozen_paths:
        if not select(declaration.shapes, (path,)):
            raise ValueError(f"frozen: no parameter lies below {path!r}; top level: {sorted(declaration.shapes)}")

    def trainable_part(tree: Params) -> Params:
        return select(tree, frozen_paths, complement=True)

    transform = optimizer.build(num_steps, trainable_part(declaration.decays))
    schedule = optimizer.schedule.build(num_steps)

    def init(key: jax.Array) -> TrainState:
        params = functional.init(objective.make, key)
        trainable = trainable_part(params)
        zero = jnp.zeros([], jnp.int32)
        ema = trainable if optimizer.ema_decay else {}
        return TrainState(zero, params, transform.init(trainable), ema, zero, zero)

    def gradients(params: Params, batch: Batch, step: Array) -> tuple[Params, Metrics]:
        trainable = trainable_part(params)
        key = step_key(seed, step)

        def loss(trainable: Params, batch: Batch):
            return objective.loss(overlay(params, trainable), {**batch, "step": step}, key)

        def one(batch: Batch) -> tuple[Params, Metrics]:
            (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trainable, batch)
            return grads, metrics

        if optimizer.privacy.noise_multiplier:
            return private_gradient(one, batch, optimizer.privacy, key, optimizer.accumulate)
        if optimizer.accumulate == 1:
            return one(batch)
        return _accumulate(one, batch, optimizer.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, metrics = gradients(state.params, batch, state.step)
        trainable = trainable_part(state.params)
        grad_norm = optax.global_norm(grads)
        good = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(grad_norm)
        updates, opt_state = transform.update(grads, state.opt_state, trainable)
        updated = optax.apply_updates(trainable, updates)
        ema = optax.incremental_update(updated, state.ema, 1 - optimizer.ema_decay) if optimizer.ema_decay else {}
        # A step that is not finite changes only the counters.
        trainable, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (updated, opt_state, ema),
            (trainable, state.opt_state, state.ema),
        )
        bad = 1 - good.astype(jnp.int32)
        in_a_row = (state.skipped_in_a_row + bad) * bad
        one = jnp.ones([])
        metrics = jax.tree.map(lambda value: jnp.where(good, value, jnp.zeros_like(value)), metrics)
        metrics |= {
            "grad_norm": (jnp.where(good, grad_norm, 0.0), good.astype(jnp.float32)),
            # Optax does not count skipped steps.
            "learning_rate": (jnp.asarray(schedule(state.step - state.skipped), jnp.float32), one),
            "skipped_in_a_row": (in_a_row.astype(jnp.float32), one),
        }
        params = overlay(state.params, trainable)
        state = TrainState(state.step + 1, params, opt_state, ema, state.skipped + bad, in_a_row)
        return state, metrics

    def evaluate(params: Params, batch: Batch) -> Metrics:
        return objective.loss(params, batch, None)[1]

    def greedy_decode(params: Params, batch: Batch) -> Array:
        return best_path(*objective.logits(params, batch))

    shapes = _with_shardings(jax.eval_shape(init, jax.random.key(0)), declaration, trainable_part, transform, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    rows, everywhere = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    options = dict(options_for(mesh.devices.flat[0].device_kind) if compiler_options is None else compiler_options)
    return Trainer(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            in_shardings=(shardings, rows),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
            compiler_options=options,
        ),
        evaluate=jax.jit(evaluate, in_shardings=(shardings.params, rows), out_shardings=everywhere),
        greedy_decode=objective.logits
        and jax.jit(greedy_decode, in_shardings=(shardings.params, rows), out_shardings=everywhere),
        pictures=objective.pictures
        and jax.jit(objective.pictures, in_shardings=(shardings.params, rows), out_shardings=everywhere),
        shapes=shapes,
        compiler_options=options,
    )


def eval_params(state: TrainState) -> Params:
    """Returns the parameters to evaluate and export: the moving average, if enabled."""
    return overlay(state.params, state.ema)


def _accumulate(gradients: Callable, batch: Batch, parts: int) -> tuple[Params, Metrics]:
    """Computes the gradient of the batch mean from `parts` micro-batches, weighted by their valid targets."""

    def cut(rows: Array) -> Array:
        if rows.shape[0] % parts:
            raise ValueError(f"optimizer.accumulate={parts} does not divide a batch of {rows.shape[0]} rows")
        # Strided, so that every device keeps a share of each micro-batch.
        return jnp.swapaxes(rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 0, 1)

    def weighted(part: Batch) -> tuple[Params, Metrics]:
        grads, metrics = gradients(part)
        return jax.tree.map(lambda grad: grad * metrics["loss"][1], grads), metrics

    def body(total, part: Batch):
        return jax.tree.map(jnp.add, total, weighted(part)), None

    micro_batches = {name: cut(rows) for name, rows in batch.items()}
    first = {name: rows[0] for name, rows in micro_batches.items()}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(weighted, first))
    (grads, metrics), _ = jax.lax.scan(body, zeros, micro_batches)
    weight = jnp.maximum(metrics["loss"][1], 1e-9)
    return jax.tree.map(lambda grad: grad / weight, grads), metrics


def _with_shardings(
    state: TrainState,
    declaration: functional.Declaration,
    trainable_part: Callable[[Params], Params],
    transform: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Adds shardings to the abstract state: moments and averages are sharded like their parameters."""
    everywhere = meshes.replicated(mesh)
    param_shardings = meshes.param_shardings(mesh, declaration.axes, declaration.shapes)
    trainable_shardings = trainable_part(param_shardings)

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)  # parameters of a group with an optimizer of its own, and of the rest

    def attach(leaf: jax.ShapeDtypeStruct | optax.MaskedNode, sharding: NamedSharding) -> Any:
        if is_masked(leaf):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def scalar(leaf):
        return attach(leaf, everywhere)

    return TrainState(
        step=scalar(state.step),
        params=jax.tree.map(attach, state.params, param_shardings),
        opt_state=optax.tree.map_params(
            transform, attach, state.opt_state, trainable_shardings, transform_non_params=scalar, is_leaf=is_masked
        ),
        ema=jax.tree.map(attach, state.ema, trainable_shardings) if state.ema else {},
        skipped=scalar(state.skipped),
        skipped_in_a_row=scalar(state.skipped_in_a_row),
    )
