"""Kernels of linear maps with a low-rank update that is kept apart (LoRA, Hu et al. 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_speechlm.nn.int_weights import QuantizedKernel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedKernel:
    """A kernel W and its update, W + scale * A B, or a stack of them: takes the kernel's place among the parameters.

    Attributes:
      kernel: W [*stack, *in, *out], an array or quantised.
      a: [*stack, *in, rank].
      b: [*stack, rank, *out].
      scale: factor of the update.
    """

    kernel: Any  # arrays; tree transformations may put other leaves here
    a: Any
    b: Any
    scale: float = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> "AdaptedKernel":
        """Returns the kernel itself for `kernel[...]`, the index that modules read variables with."""
        if index is not ...:
            raise IndexError("an adapted kernel is taken whole: merge its update first")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of W."""
        return self.kernel.shape

    def apply(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns x W + scale * (x A) B, summed over the input dimensions, in the type of x."""
        num_in, kernel = self.a.ndim - 1, self.kernel
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        quantized = isinstance(kernel, QuantizedKernel)
        y = kernel.apply(x) if quantized else jnp.tensordot(x, kernel.astype(x.dtype), num_in)
        return y + self.scale * jnp.tensordot(jnp.tensordot(x, a, num_in), b, 1)
