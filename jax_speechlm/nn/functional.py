"""Flax NNX modules as pure functions of plain nested dicts of arrays.

A module's constructor declares its parameters with logical axis names. Initial values (`init`), abstract shapes and
axis names for shardings (`declare`), and the pure call (`bind`) all derive from that declaration. Code outside of a
module's `__call__` handles parameters as a nested dict of arrays.
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
"""Activations of a stack that the forward pass keeps; the backward pass recomputes the others. "none" (no
rematerialisation) keeps all, "dots" the outputs of linear maps and activations named `SAVED_ACTIVATION`, "full" each
layer's input only. "dots" is the fastest on CPU, where memory is slower than arithmetic."""

SAVED_ACTIVATION = "kept"
"""`checkpoint_name` of further activations that "dots" keeps: small ones that are expensive to recompute."""

_KEPT = {
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED_ACTIVATION),
    ),
}


class Declaration(NamedTuple):
    """Declaration of a module, without its arrays.

    Attributes:
      graphdef: the module's static structure, for `bind`.
      shapes: nested dict of `jax.ShapeDtypeStruct`.
      axes: nested dict of tuples, the logical axis name or None for each dimension of a parameter.
      decays: nested dict of booleans, whether weight decay applies to a parameter.
    """

    graphdef: nnx.GraphDef
    shapes: Params
    axes: Params
    decays: Params


def declare(make: MakeModule) -> Declaration:
    """Evaluates a module's constructor abstractly, without allocating memory for parameters."""
    with nnx.use_eager_sharding(False):
        graphdef, state = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0))))

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    def axes_of(variable: nnx.Variable) -> tuple[str | None, ...]:
        names = variable.get_metadata().get("out_sharding") or ()
        return tuple(names) + (None,) * (len(variable.get_value().shape) - len(names))

    axes = jax.tree.map(axes_of, state, is_leaf=is_variable)
    decays = jax.tree.map(lambda variable: variable.get_metadata()["decays"], state, is_leaf=is_variable)
    return Declaration(graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes), nnx.to_pure_dict(decays))


def init(make: MakeModule, key: PRNGKeyArray) -> Params:
    """Returns initial parameters. It is pure, so that it may be jitted with output shardings."""
    with nnx.use_eager_sharding(False):
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(params=key)))[1])


def bind(graphdef: nnx.GraphDef, params: Params | nnx.State) -> nnx.Module:
    """Returns the module with these parameters, for use inside a jitted function."""
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
      axes: logical axis name, or None, for each dimension.
      initializer: `(key, shape, dtype) -> initial values`.
      decays: whether weight decay applies: False for biases, scales of norms and single learnt vectors, of any number
        of dimensions.
    """
    return nnx.Param(initializer(key, shape, jnp.float32), sharding_names=axes, decays=decays)


def stack(make_layer: MakeModule, num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Declares `num_layers` layers as one module whose arrays have a leading "layers" axis, for `jax.lax.scan`."""

    @nnx.split_rngs(splits=num_layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_layer(rngs)

    return make(rngs)


def scan_layers(
    layers: nnx.Module, call: Callable[[nnx.Module, Any, Any], tuple[Any, Any]], x: Any, inputs: Any, remat: Remat
) -> tuple[Any, Any]:
    """Runs the layers of a `stack` in sequence.

    Args:
      call: `(layer, x, input) -> (x, y)`.
      x: pytree of arrays, the input of the first layer.
      inputs: pytree of arrays with a leading "layers" axis; each layer gets its slice.

    Returns:
      x after the last layer, and the y of all layers, stacked.
    """
    graphdef, params_L = nnx.split(layers)

    def step(x: Any, params_and_input: tuple[Any, Any]) -> tuple[Any, Any]:
        params, layer_input = params_and_input
        return call(bind(graphdef, params), x, layer_input)

    return jax.lax.scan(rematerialised(step, remat, in_scan=True), x, (params_L, inputs))


def rematerialised(function: Callable[..., Any], remat: Remat, *, in_scan: bool = False) -> Callable[..., Any]:
    """Returns the function, of which the forward pass keeps what `remat` says.

    Args:
      in_scan: whether it is the body of a scan, where XLA cannot undo the recomputation.
    """
    return function if remat == "none" else jax.checkpoint(function, prevent_cse=not in_scan, policy=_KEPT[remat])
