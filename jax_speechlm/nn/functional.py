"""Modules as pure functions: the one place where Flax NNX modules and plain dicts of arrays meet.

A module's constructor declares its parameters with logical axis names. From that one declaration come the initial
values (`init`), the abstract shapes and the axis names that shardings are derived from (`declare`), and the pure
call (`bind`). Everything outside a module's `__call__` sees parameters as a plain nested dict of arrays.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

Params = dict[str, Any]  # a nested dict whose leaves are arrays
MakeModule = Callable[[nnx.Rngs], nnx.Module]

Remat = Literal["none", "dots", "full"]
"""What a stack's forward pass keeps for the backward pass, which computes the rest again: "none" keeps everything,
"dots" the outputs of the linear maps and what is named `SAVED_ACTIVATION`, "full" only each layer's input. On CPU
"dots" is the fastest: memory is slower than arithmetic there."""

SAVED_ACTIVATION = "kept"
"""The `checkpoint_name` of what "dots" keeps besides: results that are small for the arithmetic they take."""

_KEPT = {
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED_ACTIVATION),
    ),
}


class Declaration(NamedTuple):
    """What a module's constructor declares, without any array being made.

    Attributes:
      graphdef: the module's static structure, for `bind`.
      shapes: nested dict of `jax.ShapeDtypeStruct`.
      axes: nested dict of the same structure; each leaf a tuple that names each dimension's logical axis, or None.
      decays: nested dict of the same structure; whether weight decay applies to each parameter.
    """

    graphdef: nnx.GraphDef
    shapes: Params
    axes: Params
    decays: Params


def declare(make: MakeModule) -> Declaration:
    """Evaluates a module's constructor abstractly. Costs no memory, whatever the model's size."""
    with nnx.use_eager_sharding(False):
        graphdef, state = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0))))
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731

    def axes_of(variable: nnx.Variable) -> tuple[str | None, ...]:
        names = variable.get_metadata().get("out_sharding") or ()
        return tuple(names) + (None,) * (len(variable.get_value().shape) - len(names))

    axes = jax.tree.map(axes_of, state, is_leaf=is_variable)
    decays = jax.tree.map(lambda variable: variable.get_metadata()["decays"], state, is_leaf=is_variable)
    return Declaration(graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes), nnx.to_pure_dict(decays))


def init(make: MakeModule, key: PRNGKeyArray) -> Params:
    """Initial parameters, as a plain nested dict. Pure: may be jitted with output shardings."""
    with nnx.use_eager_sharding(False):
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(params=key)))[1])


def bind(graphdef: nnx.GraphDef, params: Params | nnx.State) -> nnx.Module:
    """The module with these parameters, ready to call. Free of side effects; use it inside the jitted function."""
    return nnx.merge(graphdef, params)


def parameter(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    initializer: Callable[..., Float[Array, "..."]],
    *,
    decays: bool = True,
) -> nnx.Param:
    """Declares one float32 parameter.

    Args:
      key: for its initial values.
      shape: its dimensions.
      axes: the logical name of each dimension.
      initializer: gives its initial values.
      decays: whether weight decay applies: False for biases, scales of norms and single learnt vectors, whatever their
        number of dimensions.
    """
    return nnx.Param(initializer(key, shape, jnp.float32), sharding_names=axes, decays=decays)


def stack(make_layer: MakeModule, num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`num_layers` layers declared as one module whose arrays have a leading "layers" axis, for `jax.lax.scan`."""

    @nnx.split_rngs(splits=num_layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_layer(rngs)

    return make(rngs)


def scan_layers(
    layers: nnx.Module, call: Callable[[nnx.Module, Any, Any], tuple[Any, Any]], x: Any, each: Any, remat: Remat
) -> tuple[Any, Any]:
    """Runs a `stack` of layers one after the other.

    Args:
      layers: what `stack` made.
      call: `(layer, x, each) -> (x, y)`.
      x: what goes through the layers: a pytree of arrays.
      each: a pytree of arrays with a leading "layers" axis, of which each layer is given its own.
      remat: what to keep for the backward pass.

    Returns:
      x after the last layer, and every layer's y, stacked.
    """
    graphdef, params_L = nnx.split(layers)

    def step(x: Any, params_and_each: tuple[Any, Any]) -> tuple[Any, Any]:
        params, each = params_and_each
        return call(bind(graphdef, params), x, each)

    if remat != "none":
        step = jax.checkpoint(step, prevent_cse=False, policy=_KEPT[remat])
    return jax.lax.scan(step, x, (params_L, each))
