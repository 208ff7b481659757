"""Post-training quantisation: kernels of linear maps in 8 or 4 bits instead of float32.

A kernel [in, out] becomes integers and scales, w ~ values * scale, without an offset: values are rounded to the nearest
of -127 ... 127 or -7 ... 7, and a scale is the largest magnitude over 127 or 7. A weight changes by at most half of its
scale, and 0 stays 0. In 8 bits there is one scale an output; in 4 bits, where that is too coarse, one for each group of
`group` inputs of an output (as in GPTQ and AWQ). With "int8_dynamic" the inputs of the map are quantised too, with a
scale for each token computed at run time, and the products are integer products. No calibration is needed.

`QuantizedKernel` is a pytree that replaces the kernel's array, also in stacks of layers, so functions over parameters
accept both.
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
    """A quantised kernel, or a stack of them.

    Attributes:
      values: int8 [*stack, groups, inputs, outputs]; in 4 bits uint8 [*stack, groups, inputs / 2, outputs], where the
        low bits of a byte hold an input of the group's first half and the high bits one of its second. The last group
        is padded with zeros; in 8 bits there is one group.
      scale: float32 [*stack, groups, 1, outputs].
      num_in: number of its leading dimensions that are inputs.
    """

    values: Any  # arrays; tree transformations may put other leaves here
    scale: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    num_in: int = dataclasses.field(metadata={"static": True})
    kind: Kind = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> "QuantizedKernel":
        """Returns the kernel itself for `kernel[...]`, the index that modules read variables with."""
        if index is not ...:
            raise IndexError("a quantized kernel is taken whole: dequantize it first")
        return self

    def apply(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns x @ kernel, summed over the input dimensions, in the type of x."""
        lead, out_shape = x.shape[: x.ndim - self.num_in], self.shape[self.num_in :]
        flat = x.reshape(*lead, -1)
        if self.kind == "int4":
            y = flat @ self.dequantize().reshape(flat.shape[-1], -1).astype(x.dtype)
        elif self.kind == "int8":
            y = (flat @ self.values[0].astype(x.dtype)) * self.scale[0, 0].astype(x.dtype)
        else:
            token = _scale(flat.astype(jnp.float32), 127, axis=-1)
            integers = jnp.round(flat / token).astype(jnp.int8)
            dims = ((flat.ndim - 1,), (0,)), ((), ())
            y = jax.lax.dot_general(integers, self.values[0], dims, preferred_element_type=jnp.int32)
            y = (y * token * self.scale[0, 0]).astype(x.dtype)
        return y.reshape(*lead, *out_shape)

    def dequantize(self) -> Float[Array, "..."]:
        """Returns the float32 kernel, or stack of kernels, that the integers represent."""
        values = jnp.asarray(self.values)
        groups = _unpack(values) if self.kind == "int4" else values
        flat = (groups * self.scale).reshape(*groups.shape[:-3], -1, groups.shape[-1])
        num_inputs = math.prod(self.shape[: self.num_in])
        return flat[..., :num_inputs, :].reshape(*groups.shape[:-3], *self.shape)


def quantize_kernel(
    kernel: Float[Array, "..."] | Float[np.ndarray, "..."], num_in: int, kind: Kind, *, stacked: bool, group: int = 32
) -> QuantizedKernel:
    """Quantises a kernel.

    Args:
      kernel: the kernel; with `stacked` its first dimension counts layers.
      num_in: number of input dimensions, not counting layers.
      group: inputs that share a scale in 4 bits; even.

    Returns:
      The quantised kernel; `dequantize` inverts it up to rounding.
    """
    kernel, lead = jnp.asarray(kernel, jnp.float32), int(stacked)
    shape = kernel.shape[lead:]
    flat = kernel.reshape(*kernel.shape[:lead], math.prod(shape[:num_in]), -1)
    inputs = flat.shape[-2]
    if kind == "int4":
        group = min(group, inputs + inputs % 2)  # fewer inputs than a group has form one group without padding
        flat = jnp.pad(flat, [(0, 0)] * lead + [(0, -inputs % group), (0, 0)])
    else:
        group = inputs
    groups = flat.reshape(*flat.shape[:lead], -1, group, flat.shape[-1])
    most = 7 if kind == "int4" else 127
    scale = _scale(groups, most, axis=-2)
    values = jnp.clip(jnp.round(groups / scale), -most, most).astype(jnp.int8)
    return QuantizedKernel(_pack(values) if kind == "int4" else values, scale, shape, num_in, kind)


def _scale(x: Array, most: int, axis: int) -> Array:
    """Returns the step between values; 1 where all values are 0."""
    top = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    return jnp.where(top > 0, top / most, 1.0)


def _pack(values: Array) -> Array:
    low, high = jnp.split(values.astype(jnp.uint8) & 15, 2, axis=-2)
    return low | (high << 4)


def _unpack(packed: Array) -> Array:
    both = jnp.concatenate([packed & 15, packed >> 4], axis=-2).astype(jnp.int8)
    return both - 16 * (both > 7).astype(jnp.int8)


def dequantize(params: Params) -> Params:
    """Returns parameters with every quantised kernel as a float32 array."""

    def is_quantized(leaf: Any) -> bool:
        return isinstance(leaf, QuantizedKernel)

    return jax.tree.map(
        lambda leaf: np.asarray(leaf.dequantize()) if is_quantized(leaf) else leaf, params, is_leaf=is_quantized
    )


def to_plain(params: Params) -> tuple[Params, dict[str, Any]]:
    """Converts parameters for a checkpoint.

    Returns:
      Nested dicts of arrays, and the JSON record that `from_plain` needs.
    """
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
    """Inverts `to_plain`."""
    for path, record in kernels.items():
        names = path.split("/")
        arrays, shape = at(params, names), tuple(record["shape"])
        kernel = QuantizedKernel(arrays["values"], arrays["scale"], shape, record["num_in"], record["kind"])
        params = replace(params, names, kernel)
    return params
