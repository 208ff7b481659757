"""LoRA (Hu et al. 2021): low-rank updates of frozen linear maps.

    y = x W + (alpha / rank) (x A) B,    A [in, rank] random, B [rank, out] initially 0

A and B are parameters of the group "lora", under the paths of the maps that they update. W has no gradient, so the
adapted model stays frozen, and a checkpoint holds both.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import overlay
from jax_speechlm.nn.functional import Params, parameter
from jax_speechlm.nn.layers import Linear, linear_maps

GROUP = "lora"


class LoRA(Config):
    """Settings of the low-rank updates.

    Attributes:
      rank: of an update; 0 disables LoRA.
      alpha: updates are multiplied by alpha / rank.
      targets: path prefixes; every linear map below one is adapted.
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
        lead = int(axes[0] == "layers")  # the axis of a stack, which both matrices have
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


class AdaptedLinear(nnx.Module):
    """Linear map with its low-rank update."""

    def __init__(self, linear: Linear, update: Update, scale: float):
        self.linear, self.update, self.scale = linear, update, scale

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        a, b = self.update.a[...].astype(x.dtype), self.update.b[...].astype(x.dtype)
        return self.linear(x) + self.scale * jnp.tensordot(jnp.tensordot(x, a, self.linear.num_in), b, 1)


def make_updates(module: nnx.Module, config: LoRA, *, rngs: nnx.Rngs) -> nnx.Module:
    """Declares an `Update` for each linear map of `module` that the config selects.

    Returns:
      Nested `nnx.Dict`s with the paths of the maps.

    Raises:
      ValueError: a target matches no linear map.
    """
    maps = dict(linear_maps(module))
    tree: dict[str, Any] = {}
    for target in config.targets:
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
    """Replaces linear maps of a newly bound module by `AdaptedLinear`, in place, in stacks of layers too."""

    def walk(parent: nnx.Module, branch: nnx.Module) -> None:
        for name, child in branch.items():
            if isinstance(child, Update):
                setattr(parent, name, AdaptedLinear(getattr(parent, name), child, config.scale))
            else:
                walk(getattr(parent, name), child)

    walk(module, updates)


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

    def walk(base: Params, updates: Params, path: str) -> tuple[Params, Params]:
        merged, kept = dict(base), {}
        for name, child in updates.items():
            here = f"{path}/{name}".lstrip("/")
            if name not in base:
                raise ValueError(f"{GROUP}/{here} updates a map that this model does not have; it has {sorted(base)}")
            if "a" in child and "b" in child:
                merged[name] = base[name] | {"kernel": _sum(base[name].get("kernel"), child, config.scale, here)}
                kept[name] = {"kernel": base[name]["kernel"]}
            else:
                merged[name], kept[name] = walk(base[name], child, here)
        return merged, kept

    base = {name: group for name, group in params.items() if name != GROUP}
    merged, kept = walk(base, params[GROUP], "")
    return merged, {"kernels": kept, GROUP: params[GROUP]}


def unmerge(merged: Params, kept: Params) -> Params:
    """Returns the parameters before `merge`, bit for bit: it restores the replaced kernels."""
    if not kept:
        return merged
    return overlay(merged, kept["kernels"]) | {GROUP: kept[GROUP]}


def _sum(kernel: Array | None, update: Params, scale: float, path: str) -> Array:
    a, b = update["a"], update["b"]
    lead = 0 if kernel is None else a.ndim + b.ndim - 2 - kernel.ndim

    def product(a: Any, b: Any) -> Array:
        return jnp.tensordot(a, b, 1)

    fits = kernel is not None and lead in (0, 1)
    if fits:
        fits = a.shape[:-1] + b.shape[lead + 1 :] == kernel.shape and a.shape[-1] == b.shape[lead]
    if not fits:
        reason = "there is no such kernel" if kernel is None else f"the kernel is {kernel.shape}"
        raise ValueError(
            f"{GROUP}/{path}: a {a.shape} and b {b.shape} do not fit {path}/kernel: {reason}. Use the model that "
            "this LoRA was trained with, or leave it out of init_from.groups"
        )
    return kernel + scale * (jax.vmap(product) if lead else product)(a, b)


def _as_module(tree: dict[str, Any]) -> nnx.Module:
    return nnx.Dict({name: child if isinstance(child, Update) else _as_module(child) for name, child in tree.items()})
