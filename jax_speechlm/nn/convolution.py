"""Dense convolution over the time of packed rows."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.layers import Linear
from jax_speechlm.parallel import sequence


class Convolution(Linear):
    """Convolution with an odd number of taps, centred on the present frame, within each utterance of a row.

    Frames beyond the ends of an utterance count as zeros, whatever the row has there. It is one matrix product over
    shifted views; `kernel` is [taps, in, out].

    Args:
      axes: logical names of the input's and the output's width.
      Others as of `Linear`.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        taps: int,
        axes: Sequence[str | None],
        *,
        bias: bool = True,
        bias_scale: float = 0.0,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if taps % 2 == 0:
            raise ValueError(f"a centred convolution has an odd number of taps, not {taps}")
        settings = {"bias": bias, "bias_scale": bias_scale, "gain": gain}
        super().__init__((taps, dim_in), (dim_out,), (None, *axes), **settings, rngs=rngs)
        self.taps = taps

    def __call__(self, x: Float[Array, "batch time in"], segments: Segments) -> Float[Array, "batch time out"]:
        """Returns one output a frame; values at padding are arbitrary."""
        num_frames = x.shape[1]
        x = jnp.where(segments.mask(num_frames)[..., None], x, 0)
        if self.taps == 1:
            return super().__call__(x[:, :, None])
        x, reach = sequence.pad_time(x), self.taps // 2
        rows = x if segments.num == 1 else (x, segments.segment(x.shape[1]))
        views = sequence.with_context(lambda rows: _windows(rows, reach), rows, past=reach, future=reach)
        return super().__call__(views[:, :num_frames].reshape(*x.shape[:1], num_frames, self.taps, -1))


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
