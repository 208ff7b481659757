"""Dense convolutions over time: of packed rows, of utterances reflected at their ends, of whole rows, and strided."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear
from jax_speechlm.parallel import sequence


class Convolution(Linear):
    """Convolution with an odd number of taps, centred on the present frame, within each utterance of a row.

    Frames beyond the ends of an utterance count as zeros, whatever the row has there. It is one matrix product over
    shifted views; `kernel` is [taps, in, out].

    Args:
      axes: logical names of the input's and the output's width.
      stride: frames from one output to the next; utterances start at multiples of it.
      bias, bias_scale, gain: as of `Linear`.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        taps: int,
        axes: Sequence[str | None],
        *,
        stride: int = 1,
        bias: bool = True,
        bias_scale: float = 0.0,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if taps % 2 == 0:
            raise ValueError(f"a centred convolution has an odd number of taps, not {taps}")
        settings = {"bias": bias, "bias_scale": bias_scale, "gain": gain}
        super().__init__((taps, dim_in), (dim_out,), (None, *axes), **settings, rngs=rngs)
        self.taps, self.stride = taps, stride

    def __call__(self, x: Float[Array, "batch time in"], segments: Segments) -> Float[Array, "batch outputs out"]:
        """Returns one output for every `stride` frames, rounded up; values at padding are arbitrary."""
        num_frames = x.shape[1]
        x = jnp.where(segments.mask(num_frames)[..., None], x, 0)
        if self.taps == 1:
            return super().__call__(x[:, :: self.stride, None])
        x, reach = sequence.pad_time(x), self.taps // 2
        rows = x if segments.num == 1 else (x, segments.segment(x.shape[1]))
        views = sequence.with_context(lambda rows: _windows(rows, reach), rows, past=reach, future=reach)
        views = views[:, : num_frames : self.stride]
        return super().__call__(views.reshape(*views.shape[:2], self.taps, -1))


def _windows(rows: Array | tuple[Array, Array], reach: int) -> Float[Array, "batch time values"]:
    """Returns the values of the frames around each frame, zeros for those of other utterances."""
    x, segment = rows if isinstance(rows, tuple) else (rows, None)
    num_frames = x.shape[1]

    def shifted(x: Array) -> list[Array]:
        padded = jnp.pad(x, ((0, 0), (reach, reach)) + ((0, 0),) * (x.ndim - 2))
        return [padded[:, tap : tap + num_frames] for tap in range(2 * reach + 1)]

    views = shifted(x)
    if segment is not None:
        same = [other == segment for other in shifted(segment)]
        views = [jnp.where(mask[..., None], view, 0) for mask, view in zip(same, views, strict=True)]
    return jnp.concatenate(views, axis=-1)


class RowConvolution(nnx.Module):
    """Convolution over all of a row, with zeros beyond its ends, over time or over time and frequency.

    It is XLA's convolution, which suits long rows of few channels. `kernel` is [taps..., in, out]. Values at padding
    count, so a caller that has padding sets it to zero.

    Args:
      taps: taps of each dimension.
      dilation: distance between taps; 1 with a stride.
      stride: inputs from one output to the next, of the last dimension; 1 in the others.
      gain: factor on the kernel's initial values.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        taps: int | tuple[int, int],
        *,
        dilation: int = 1,
        stride: int = 1,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if stride > 1 and dilation > 1:
            raise ValueError(f"a stride of {stride} is over neighbouring inputs: leave dilation ({dilation}) at 1")
        taps = (taps,) if isinstance(taps, int) else taps
        spans = [(tap - 1) * dilation for tap in taps]
        self.padding = tuple((span // 2, span - span // 2) for span in spans)
        self.dilation = (dilation,) * len(taps)
        self.stride = stride
        inputs = tuple(range(len(taps) + 1))
        values = jax.nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal", inputs, len(inputs))
        axes = (*(None for _ in taps), "embed", "mlp")
        self.kernel = parameter(rngs.params(), (*taps, dim_in, dim_out), axes, values)
        self.bias = parameter(rngs.params(), (dim_out,), ("mlp",), jax.nn.initializers.zeros, decays=False)

    def __call__(self, x: Float[Array, "batch *places in"]) -> Float[Array, "batch *places_out out"]:
        """Returns ceil(size / stride) outputs of the last of the places."""
        kernel, padding = self.kernel[...].astype(x.dtype), self.padding
        names = "HW"[-len(padding) :]
        if self.stride > 1:
            x, kernel = _in_blocks(x, kernel, self.stride, padding[-1][0])
            padding = (*padding[:-1], (0, 0))
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,) * len(padding),
            padding=padding,
            rhs_dilation=self.dilation,
            dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
        )
        return y + self.bias[...].astype(x.dtype)


def _in_blocks(
    x: Float[Array, "batch *places in"], kernel: Float[Array, "*taps in out"], stride: int, before: int
) -> tuple[Float[Array, "batch *blocks inputs"], Float[Array, "*taps_in_blocks inputs out"]]:
    """Returns blocks of `stride` inputs, with `before` zeros first, and the kernel for them; both in the last place.

    Their convolution, without stride and padding, is the strided one. The gradient of XLA's strided convolution has
    zeros between its inputs, which takes 10 times as long on CPUs.
    """
    size, (taps, dim, _) = x.shape[-2], kernel.shape[-3:]
    num_outputs, blocks = -(-size // stride), -(-taps // stride)
    total = (num_outputs + blocks - 1) * stride
    places = [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, (*places, (before, max(total - before - size, 0)), (0, 0)))[..., :total, :]
    kernel = jnp.pad(kernel, (*places[1:], (0, blocks * stride - taps), (0, 0), (0, 0)))
    blocked = x.reshape(*x.shape[:-2], num_outputs + blocks - 1, stride * dim)
    return blocked, kernel.reshape(*kernel.shape[:-3], blocks, stride * dim, kernel.shape[-1])


class StridedConvolution(Linear):
    """Convolution without padding: (time - taps) // stride + 1 outputs, of which none reads a value beyond the row.

    It is one matrix product over views of blocks of `stride` inputs. `kernel` is [taps, in, out].

    Args:
      bias, gain: as of `Linear`.
    """

    def __init__(
        self, dim_in: int, dim_out: int, taps: int, stride: int, *, bias: bool, gain: float = 1.0, rngs: nnx.Rngs
    ):
        super().__init__((taps, dim_in), (dim_out,), (None, None, "embed"), bias=bias, gain=gain, rngs=rngs)
        self.taps, self.stride = taps, stride

    def __call__(self, x: Float[Array, "batch time in"]) -> Float[Array, "batch outputs out"]:
        taps, stride, (batch, size, dim) = self.taps, self.stride, x.shape
        num_outputs, blocks = (size - taps) // stride + 1, -(-taps // stride)
        # Padding by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
        x = jnp.pad(x, ((0, 0), (0, stride - 1), (0, 0)))[:, : (num_outputs - 1 + blocks) * stride]
        x = x.reshape(batch, -1, stride * dim)
        views = jnp.concatenate([x[:, i : i + num_outputs] for i in range(blocks)], axis=-1)[..., : taps * dim]
        return super().__call__(views.reshape(batch, num_outputs, taps, dim))


class ReflectedConvolution(Linear):
    """Convolution over utterances reflected at both ends; ceil(length / stride) outputs.

    It is a matrix product: over whole blocks of samples if strided, where the taps are a multiple of the stride, else
    over shifted views. `kernel` is [taps, in, out].
    """

    def __init__(self, dim_in: int, dim_out: int, taps: int, stride: int = 1, dilation: int = 1, *, rngs: nnx.Rngs):
        if taps % stride or (stride > 1 and dilation > 1):
            raise ValueError(f"{taps} taps at dilation {dilation} are not whole blocks of {stride} samples")
        super().__init__((taps, dim_in), (dim_out,), (None, "embed", None), rngs=rngs)
        self.taps, self.stride, self.dilation = taps, stride, dilation

    def __call__(
        self, x: Float[Array, "batch time in"], length: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch frames out"], Int[Array, " batch"]]:
        """Returns outputs, arbitrary at padding, and their number in each row."""
        taps, stride = self.taps, self.stride
        after = -(-length // stride)
        total = (taps - 1) * self.dilation + 1 - stride
        right = total // 2
        num_outputs = -(-x.shape[1] // stride)
        if total or stride > 1:
            x = _reflected(x, length, total - right, right + after * stride - length, right + stride - 1)
        kernel = self.kernel[...].astype(x.dtype)
        if stride == 1:
            views = [x[:, tap * self.dilation :][:, :num_outputs] for tap in range(taps)]
            y = jnp.tensordot(jnp.stack(views, axis=2), kernel, axes=2)
        else:
            blocks = x[:, : (num_outputs + taps // stride - 1) * stride]
            blocks = blocks.reshape(x.shape[0], -1, stride * x.shape[2])
            parts = kernel.reshape(taps // stride, stride * x.shape[2], -1)
            y = sum(blocks[:, i : i + num_outputs] @ part for i, part in enumerate(parts))
        return y + self.bias[...].astype(x.dtype), after


def _reflected(
    x: Float[Array, "batch time dim"], length: Int[Array, " batch"], left: int, right: Int[Array, " batch"], most: int
) -> Float[Array, "batch padded dim"]:
    """Returns rows that begin with `left` reflected values, and have each utterance's reflection after its end.

    As in the reference, an utterance that is too short for its reflection is first filled with zeros.

    Args:
      right: values to add to each utterance.
      most: greatest value of `right`; `left + time + most` values are enough.
    """
    x = jnp.pad(x, ((0, 0), (0, max(most, left + 1)), (0, 0)))
    place = jnp.arange(x.shape[1])
    longest = jnp.maximum(left, right)
    whole = jnp.where(length <= longest, longest + 1, length)  # with the zeros
    head = jnp.where(place[None, 1 : left + 1] < length[:, None], True, False)[..., None] * x[:, 1 : left + 1]
    if most:
        ahead = length[:, None] + jnp.arange(most)
        source = 2 * (whole[:, None] - 1) - ahead
        valid = (ahead >= whole[:, None]) & (source >= 0) & (source < length[:, None])
        tail = jnp.take_along_axis(x, jnp.where(valid, source, 0)[..., None], axis=1)
        tail = jnp.where(valid[..., None], tail, 0)
        x = jax.vmap(lambda row, values, at: jax.lax.dynamic_update_slice_in_dim(row, values, at, 0))(x, tail, length)
    return jnp.concatenate([head[:, ::-1], x], axis=1)
