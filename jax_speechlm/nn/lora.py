"""LoRA (Hu et al. 2021): a linear map W is left as it is, and a product of two thin matrices is learnt beside it.

    y = x W + (alpha / rank) (x A) B,    A [in, rank] random, B [rank, out] 0 at the start

A and B are parameters of their own group, "lora", whose paths repeat those of the maps they belong to. The map itself
has no gradient, so the model that was adapted stays frozen, and a checkpoint holds it beside its adaptation.
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
    """Which linear maps are adapted, and how much they may change.

    Attributes:
      rank: of the change; 0 adapts nothing.
      alpha: the change is multiplied by alpha / rank.
      targets: path prefixes: every linear map that lies below one is adapted.
    """

    rank: pydantic.NonNegativeInt = 0
    alpha: pydantic.PositiveFloat = 16.0
    targets: tuple[str, ...] = ("transformer/layers/attention/query", "transformer/layers/attention/value")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Update(nnx.Module):
    """The change of one linear map, or of a stack of them."""

    def __init__(self, linear: Linear, rank: int, *, rngs: nnx.Rngs):
        shape, axes = linear.kernel[...].shape, tuple(linear.kernel.get_metadata()["out_sharding"])
        lead = int(axes[0] == "layers")  # a stack's axis, which both matrices have
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
    """A linear map and its change."""

    def __init__(self, linear: Linear, update: Update, scale: float):
        self.linear, self.update, self.scale = linear, update, scale

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        a, b = self.update.a[...].astype(x.dtype), self.update.b[...].astype(x.dtype)
        return self.linear(x) + self.scale * jnp.tensordot(jnp.tensordot(x, a, self.linear.num_in), b, 1)


def make_updates(module: nnx.Module, config: LoRA, *, rngs: nnx.Rngs) -> nnx.Module:
    """An `Update` for each linear map of `module` that the config names, in nested dicts by their paths.

    Raises:
      ValueError: a target names no linear map.
    """
    maps = dict(linear_maps(module))
    tree: dict[str, Any] = {}
    for target in config.targets:
        found = [path for path in maps if f"{path}/".startswith(f"{target}/")]
        if not found:
            raise ValueError(f"model.lora.targets: no linear map lies below {target!r}; there are {', '.join(maps)}")
        for path in found:
            *parents, name = path.split("/")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[name] = branch.get(name) or Update(maps[path], config.rank, rngs=rngs)
    return _as_module(tree)


def adapt(module: nnx.Module, updates: nnx.Module, config: LoRA) -> None:
    """Puts the changes beside the linear maps of a module that was just bound, which runs as it did, in scans too."""

    def walk(here: nnx.Module, branch: nnx.Module) -> None:
        for name, child in branch.items():
            if isinstance(child, Update):
                setattr(here, name, AdaptedLinear(getattr(here, name), child, config.scale))
            else:
                walk(getattr(here, name), child)

    walk(module, updates)


def merge(params: Params, config: LoRA) -> tuple[Params, Params]:
    """Adds the changes to the maps, for use without LoRA's cost.

    Returns:
      `params` without the group "lora", which give the same outputs up to rounding; and what `unmerge` needs: the
      group, and the kernels that were replaced.

    Raises:
      ValueError: a change does not fit its map; the message names the tensor.
    """
    if GROUP not in params:
        return params, {}

    def walk(base: Params, updates: Params, path: str) -> tuple[Params, Params]:
        merged, kept = dict(base), {}
        for name, child in updates.items():
            here = f"{path}/{name}".lstrip("/")
            if name not in base:
                raise ValueError(f"{GROUP}/{here} changes a map that this model does not have; it has {sorted(base)}")
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
    """The parameters that `merge` was given, bit for bit: nothing is subtracted, the old kernels come back."""
    if not kept:
        return merged
    return overlay(merged, kept["kernels"]) | {GROUP: kept[GROUP]}


def _sum(kernel: Array | None, update: Params, scale: float, path: str) -> Array:
    a, b = update["a"], update["b"]
    lead = 0 if kernel is None else a.ndim + b.ndim - 2 - kernel.ndim
    product = lambda a, b: jnp.tensordot(a, b, 1)  # noqa: E731
    fits = kernel is not None and lead in (0, 1)
    if fits:
        fits = a.shape[:-1] + b.shape[lead + 1 :] == kernel.shape and a.shape[-1] == b.shape[lead]
    if not fits:
        there = "there is no such kernel" if kernel is None else f"the kernel is {kernel.shape}"
        raise ValueError(
            f"{GROUP}/{path}: a {a.shape} and b {b.shape} do not fit {path}/kernel: {there}. Use the model that "
            "this LoRA was trained beside, or leave it out of init_from.groups"
        )
    return kernel + scale * (jax.vmap(product) if lead else product)(a, b)


def _as_module(tree: dict[str, Any]) -> nnx.Module:
    return nnx.Dict({name: child if isinstance(child, Update) else _as_module(child) for name, child in tree.items()})
