"""LoRA (Hu et al. 2021): low-rank updates of frozen linear maps.

    y = x W + (alpha / rank) (x A) B,    A [in, rank] random, B [rank, out] initially 0

A and B are parameters of the group "lora", under the paths of the maps that they update. W has no gradient, so the
adapted model stays frozen, and a checkpoint holds both.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array

from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import overlay
from jax_speechlm.nn.adapted_kernel import AdaptedKernel
from jax_speechlm.nn.functional import MakeModule, Params, parameter
from jax_speechlm.nn.int_weights import QuantizedKernel
from jax_speechlm.nn.layers import Linear, linear_maps

GROUP = "lora"


class LoRA(Config):
    """Settings of the low-rank updates.

    Attributes:
      rank: of an update; 0 disables LoRA.
      alpha: updates are multiplied by alpha / rank.
      targets: path prefixes; every linear map below one is adapted. Empty for every linear map of stacked layers.
    """

    rank: pydantic.NonNegativeInt = 0
    alpha: pydantic.PositiveFloat = 16.0
    targets: tuple[str, ...] = ("transformer/layers/attention/query", "transformer/layers/attention/value")

    @property
    def scale(self) -> float:
        """Factor of the updates."""
        return self.alpha / self.rank


class Update(nnx.Module):
    """Low-rank update of a linear map, or of a stack of them."""

    def __init__(self, linear: Linear, rank: int, *, rngs: nnx.Rngs):
        shape, axes = linear.kernel[...].shape, tuple(linear.kernel.get_metadata()["out_sharding"])
        lead = int(is_stacked(linear))  # the axis of a stack, which both matrices have
        num_in = lead + linear.num_in
        dims = range(lead, num_in)
        initializer = jax.nn.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=tuple(dims), out_axis=num_in, batch_axis=tuple(range(lead))
        )
        self.a = parameter(rngs.params(), (*shape[:num_in], rank), (*axes[:num_in], "rank"), initializer)
        self.b = parameter(
            rngs.params(),
            (*shape[:lead], rank, *shape[num_in:]),
            (*axes[:lead], "rank", *axes[num_in:]),
            jax.nn.initializers.zeros,
        )


def is_stacked(linear: Linear) -> bool:
    """Returns whether a linear map is a stack, with one map for each layer."""
    return linear.kernel.get_metadata()["out_sharding"][0] == "layers"


class MapShape(NamedTuple):
    """Shape of a linear map's kernel, [layers, *in, *out] if it is stacked, and its number of input dimensions."""

    shape: tuple[int, ...]
    num_in: int
    is_stacked: bool

    @property
    def flat(self) -> tuple[int, int, int]:
        """Number of layers (1 if it is not stacked), of inputs and of outputs."""
        layers, rest = (self.shape[0], self.shape[1:]) if self.is_stacked else (1, self.shape)
        return layers, math.prod(rest[: self.num_in]), math.prod(rest[self.num_in :])


def adaptable_maps(make: MakeModule) -> dict[str, MapShape]:
    """Returns the linear maps of a module by path, without allocating memory for parameters."""
    shapes: dict[str, MapShape] = {}

    def visit() -> None:
        for path, linear in linear_maps(make(nnx.Rngs(0))):
            shapes[path] = MapShape(linear.kernel[...].shape, linear.num_in, is_stacked(linear))

    with nnx.use_eager_sharding(False):
        jax.eval_shape(visit)
    return shapes


def make_updates(module: nnx.Module, config: LoRA, *, rngs: nnx.Rngs) -> nnx.Module:
    """Declares an `Update` for each linear map of `module` that the config selects.

    Returns:
      Nested `nnx.Dict`s with the paths of the maps.

    Raises:
      ValueError: a target matches no linear map.
    """
    maps = dict(linear_maps(module))
    tree: dict[str, Any] = {}
    for target in config.targets or [path for path, linear in maps.items() if is_stacked(linear)]:
        adapted = [path for path in maps if f"{path}/".startswith(f"{target}/")]
        if not adapted:
            raise ValueError(f"model.lora.targets: no linear map below {target!r}; choose from {', '.join(maps)}")
        for path in adapted:
            *parents, name = path.split("/")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[name] = branch.get(name) or Update(maps[path], config.rank, rngs=rngs)
    return _as_module(tree)


def adapt(module: nnx.Module, updates: nnx.Module, config: LoRA) -> None:
    """Gives linear maps of a newly bound module their updates, in place, in stacks of layers too."""

    def walk(parent: nnx.Module, branch: nnx.Module) -> None:
        for name, child in branch.items():
            linear = getattr(parent, name)
            if isinstance(child, Update):
                kernel = AdaptedKernel(linear.kernel[...], child.a[...], child.b[...], config.scale)
                linear.kernel.set_value(kernel)
            else:
                walk(linear, child)

    walk(module, updates)


def attach(params: Params, updates: Params, scale: float) -> Params:
    """Returns parameters whose kernels have their updates beside them; the kernels are not copied.

    Args:
      params: without the group "lora".
      updates: that group: {"a", "b"} below the path of each map.
      scale: factor of the updates.

    Raises:
      ValueError: an update belongs to no map, or its shapes do not fit; the message names the tensor.
    """

    def joined(kernel: Any, update: Params, path: str) -> AdaptedKernel:
        _lead(kernel, update, path)
        return AdaptedKernel(kernel, update["a"], update["b"], scale)

    return _updated(params, updates, joined)


def merge(params: Params, config: LoRA) -> tuple[Params, Params]:
    """Adds the updates to the kernels, for inference without the cost of LoRA.

    Returns:
      `params` without the group "lora", which give the same outputs up to rounding; and the input of `unmerge`: the
      group and the replaced kernels.

    Raises:
      ValueError: the shapes of an update do not fit its map; the message names the tensor.
    """
    if GROUP not in params:
        return params, {}

    base = {name: group for name, group in params.items() if name != GROUP}
    kept = _updated(base, params[GROUP], lambda kernel, update, path: kernel, only=True)
    merged = _updated(base, params[GROUP], lambda kernel, update, path: _sum(kernel, update, config.scale, path))
    return merged, {"kernels": kept, GROUP: params[GROUP]}


def unmerge(merged: Params, kept: Params) -> Params:
    """Returns the parameters before `merge`, bit for bit: it restores the replaced kernels."""
    if not kept:
        return merged
    return overlay(merged, kept["kernels"]) | {GROUP: kept[GROUP]}


def _updated(
    base: Params, updates: Params, function: Callable[[Any, Params, str], Any], *, only: bool = False, path: str = ""
) -> Params:
    """Replaces each kernel that has an update by `function(kernel or None, update, path)`; with `only` drops others."""
    tree = {} if only else dict(base)
    for name, child in updates.items():
        here = f"{path}/{name}".lstrip("/")
        if name not in base:
            raise ValueError(f"{GROUP}/{here} updates a map that this model does not have; it has {sorted(base)}")
        if "a" in child and "b" in child:
            kernel = function(base[name].get("kernel"), child, here)
            tree[name] = {"kernel": kernel} if only else base[name] | {"kernel": kernel}
        else:
            tree[name] = _updated(base[name], child, function, only=only, path=here)
    return tree


def _lead(kernel: Any, update: Params, path: str) -> int:
    """Returns 1 for a stack of layers, else 0. Raises ValueError if an update does not fit its kernel."""
    a, b = update["a"], update["b"]
    shape = None if kernel is None else jax.eval_shape(_dense, kernel).shape
    lead = 0 if shape is None else a.ndim + b.ndim - 2 - len(shape)
    fits = shape is not None and lead in (0, 1)
    if not (fits and a.shape[:-1] + b.shape[lead + 1 :] == shape and a.shape[-1] == b.shape[lead]):
        reason = "there is no such kernel" if shape is None else f"the kernel is {shape}"
        raise ValueError(
            f"{GROUP}/{path}: a {a.shape} and b {b.shape} do not fit {path}/kernel: {reason}. Use the model that "
            "this LoRA was trained with, or leave it out of init_from.groups"
        )
    return lead


def _dense(kernel: Any) -> Array:
    return kernel.dequantize() if isinstance(kernel, QuantizedKernel) else kernel


def _sum(kernel: Any, update: Params, scale: float, path: str) -> Array:
    def product(a: Any, b: Any) -> Array:
        return jnp.tensordot(a, b, 1)

    lead = _lead(kernel, update, path)
    return kernel + scale * (jax.vmap(product) if lead else product)(update["a"], update["b"])


def _as_module(tree: dict[str, Any]) -> nnx.Module:
    return nnx.Dict({name: child if isinstance(child, Update) else _as_module(child) for name, child in tree.items()})
