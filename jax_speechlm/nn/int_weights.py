"""Kernels of linear maps in 8 or 4 bits, in the place of float32 ones: quantisation after training.

A kernel [in, out] becomes integers and scales, w ~ values * scale, without an offset: values are rounded to the nearest
of -127 ... 127 or -7 ... 7, a scale is the largest magnitude over 127 or 7. So no weight changes by more than half of
its scale, and 0 stays 0. In 8 bits each output has a scale; in 4 bits, where one is too coarse, each stretch of `group`
inputs of each output (as GPTQ and AWQ store them). With "int8_dynamic" the inputs of the map are rounded too, by
a scale of each token's own that is found at run time, and the products are integers. None of it needs calibration.

`QuantizedKernel` is a pytree that stands where the kernel's array did, in stacks of layers too: functions over
parameters take either.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_speechlm.core.tree import at, replace
from jax_speechlm.nn.functional import Params

Kind = Literal["int8", "int8_dynamic", "int4"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """A kernel of `shape`, or a stack of such kernels, whose first `num_in` dimensions are inputs.

    Attributes:
      values: int8 [*stack, groups, inputs, outputs]; of 4 bits uint8 [*stack, groups, inputs / 2, outputs], where each
        byte holds an input of the group's first half and, in its high bits, one of its second. Inputs are cut into
        groups, the last one filled up with zeros; in 8 bits there is one.
      scale: float32 [*stack, groups, 1, outputs].
    """

    values: Any  # arrays, but a pytree's leaves may be anything
    scale: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    num_in: int = dataclasses.field(metadata={"static": True})
    kind: Kind = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> "QuantizedKernel":
        """All of it, as `variable[...]` of a module asks for."""
        if index is not ...:
            raise IndexError("a quantized kernel is taken whole: dequantize it first")
        return self

    def apply(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x @ kernel over its inputs, in the type of x."""
        lead, out_shape = x.shape[: x.ndim - self.num_in], self.shape[self.num_in :]
        flat = x.reshape(*lead, -1)
        if self.kind == "int4":
            y = flat @ self.dequantize().reshape(flat.shape[-1], -1).astype(x.dtype)
        elif self.kind == "int8":
            y = (flat @ self.values[0].astype(x.dtype)) * self.scale[0, 0].astype(x.dtype)
        else:
            token = _scale(flat.astype(jnp.float32), 127, axis=-1)
            whole = jnp.round(flat / token).astype(jnp.int8)
            dims = ((flat.ndim - 1,), (0,)), ((), ())
            y = jax.lax.dot_general(whole, self.values[0], dims, preferred_element_type=jnp.int32)
            y = (y * token * self.scale[0, 0]).astype(x.dtype)
        return y.reshape(*lead, *out_shape)

    def dequantize(self) -> Float[Array, "..."]:
        """The kernel, or the stack, that the integers stand for: float32."""
        values = jnp.asarray(self.values)
        groups = _unpack(values) if self.kind == "int4" else values
        flat = (groups * self.scale).reshape(*groups.shape[:-3], -1, groups.shape[-1])
        num_inputs = math.prod(self.shape[: self.num_in])
        return flat[..., :num_inputs, :].reshape(*groups.shape[:-3], *self.shape)


def quantize_kernel(
    kernel: Float[Array, "..."] | Float[np.ndarray, "..."], num_in: int, kind: Kind, *, stacked: bool, group: int = 32
) -> QuantizedKernel:
    """Rounds a kernel.

    Args:
      kernel: with `stacked`, its first dimension counts the layers of a stack.
      num_in: its input dimensions, without that one.
      group: inputs that share a scale in 4 bits; even.
    """
    kernel, lead = jnp.asarray(kernel, jnp.float32), int(stacked)
    shape = kernel.shape[lead:]
    flat = kernel.reshape(*kernel.shape[:lead], math.prod(shape[:num_in]), -1)
    inputs = flat.shape[-2]
    if kind == "int4":
        group = min(group, inputs + inputs % 2)  # fewer inputs than a group has are one, without filling
        flat = jnp.pad(flat, [(0, 0)] * lead + [(0, -inputs % group), (0, 0)])
    else:
        group = inputs
    groups = flat.reshape(*flat.shape[:lead], -1, group, flat.shape[-1])
    most = 7 if kind == "int4" else 127
    scale = _scale(groups, most, axis=-2)
    values = jnp.clip(jnp.round(groups / scale), -most, most).astype(jnp.int8)
    return QuantizedKernel(_pack(values) if kind == "int4" else values, scale, shape, num_in, kind)


def _scale(x: Array, most: int, axis: int) -> Array:
    """The step between values; of nothing but zeros it is 1."""
    top = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    return jnp.where(top > 0, top / most, 1.0)


def _pack(values: Array) -> Array:
    low, high = jnp.split(values.astype(jnp.uint8) & 15, 2, axis=-2)
    return low | (high << 4)


def _unpack(packed: Array) -> Array:
    both = jnp.concatenate([packed & 15, packed >> 4], axis=-2).astype(jnp.int8)
    return both - 16 * (both > 7).astype(jnp.int8)


def dequantize(params: Params) -> Params:
    """The same with plain arrays, of the values that the integers stand for."""
    plain = lambda leaf: np.asarray(leaf.dequantize()) if isinstance(leaf, QuantizedKernel) else leaf  # noqa: E731
    return jax.tree.map(plain, params, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel))


def to_plain(params: Params) -> tuple[Params, dict[str, Any]]:
    """(nested dicts of arrays, what else `from_plain` needs as JSON) for a checkpoint."""
    kernels: dict[str, Any] = {}

    def walk(tree: Params, path: str) -> Params:
        plain = {}
        for name, child in tree.items():
            here = f"{path}/{name}".lstrip("/")
            if isinstance(child, QuantizedKernel):
                kernels[here] = {"shape": child.shape, "num_in": child.num_in, "kind": child.kind}
                plain[name] = {"values": child.values, "scale": child.scale}
            else:
                plain[name] = walk(child, here) if isinstance(child, dict) else child
        return plain

    return walk(params, ""), kernels


def from_plain(params: Params, kernels: dict[str, Any]) -> Params:
    """The reverse of `to_plain`."""
    for path, each in kernels.items():
        names = path.split("/")
        found = at(params, names)
        kernel = QuantizedKernel(found["values"], found["scale"], tuple(each["shape"]), each["num_in"], each["kind"])
        params = replace(params, names, kernel)
    return params
