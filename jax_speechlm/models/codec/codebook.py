"""A codebook of one vector a code: nearest code, straight-through gradient, and the update of a moving average.

The codebook is not trained by a gradient but set to a moving average of the frames assigned to each code (van den Oord
et al. 2017, appendix A.1), as in EnCodec and WavTokenizer. A training step is a pure function of parameters and batch,
so the averages are parameters: `Codebook.updated` returns their next values, and `set_by_gradient` a term of the loss
whose gradient under plain SGD at rate 1 (`optim.optimizers.Group.optimizer`) sets them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.nn.functional import parameter


class Averages(NamedTuple):
    """The parameters of a codebook.

    Attributes:
      vectors: of the codes.
      count: moving average of the share of frames that each code has; 0 of codes never in use.
      total: moving average of the sum of these frames, divided by the number of all frames.
    """

    vectors: Float[Array, "codes dim"]
    count: Float[Array, " codes"]
    total: Float[Array, "codes dim"]


class Codebook(nnx.Module):
    """The vectors of all codes. Counts start at 0, so that the first training step places codes at frames."""

    def __init__(self, num_codes: int, dim: int, *, rngs: nnx.Rngs):
        zeros, normal = jax.nn.initializers.zeros, jax.nn.initializers.normal(dim**-0.5)
        self.vectors = parameter(rngs.params(), (num_codes, dim), (None, None), normal, decays=False)
        self.count = parameter(rngs.params(), (num_codes,), (None,), zeros, decays=False)
        self.total = parameter(rngs.params(), (num_codes, dim), (None, None), zeros, decays=False)

    @property
    def averages(self) -> Averages:
        """The parameters as arrays."""
        return Averages(self.vectors[...], self.count[...], self.total[...])

    def nearest(self, x: Float[Array, "*batch dim"]) -> Int[Array, "*batch"]:
        """Returns the nearest code of each frame, in full float32 on every backend; the first of ties."""
        vectors, x = self.vectors[...], x.astype(jnp.float32)
        product = jnp.matmul(x, vectors.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmax(product - 0.5 * jnp.sum(jnp.square(vectors), axis=-1), axis=-1).astype(jnp.int32)

    def lookup(self, code_ids: Int[Array, "*batch"]) -> Float[Array, "*batch dim"]:
        """Returns the vectors of codes."""
        return jnp.take(self.vectors[...], code_ids, axis=0)

    def updated(
        self,
        x: Float[Array, "frames dim"],
        code_ids: Int[Array, " frames"],
        weight: Float[Array, " frames"],
        order: Float[Array, " frames"],
        decay: float,
        dead: float,
    ) -> tuple[Averages, Float[Array, ""]]:
        """Computes the parameters after a batch.

        Args:
          x: frames; values of weight 0 have no effect.
          code_ids: nearest codes of the frames.
          weight: 1 of valid frames, 0 of others.
          order: random numbers in [0, 1), by which frames are chosen for codes that are not in use.
          decay: of the moving averages.
          dead: codes with less than this share of the frames that a code has on average are placed at a frame.

        Returns:
          The parameters, unchanged if no frame is valid, and the number of codes placed at a frame.
        """
        old, num_codes = self.averages, self.vectors[...].shape[0]
        x = jnp.where(weight[:, None] > 0, x.astype(jnp.float32), 0)
        chosen = jax.nn.one_hot(code_ids, num_codes) * weight[:, None]
        size = jnp.maximum(jnp.sum(weight), 1)
        share = jnp.sum(chosen, axis=0) / size
        sums = jnp.matmul(chosen.T, x, precision=jax.lax.Precision.HIGHEST) / size
        count = decay * old.count + (1 - decay) * share
        total = decay * old.total + (1 - decay) * sums

        # The n-th code that is not in use takes the n-th frame in random order.
        unused = count * num_codes < dead
        most = min(num_codes, x.shape[0])
        rank, frame = jax.lax.top_k(jnp.where(weight > 0, order, -1.0), most)
        turn = jnp.cumsum(unused) - 1
        turn = jnp.where(unused & (turn < most), turn, 0)
        placed = unused & (jnp.cumsum(unused) <= most) & (rank[turn] >= 0)
        at = x[frame[turn]]
        fresh = jnp.full_like(count, 1 / num_codes)
        count, total = jnp.where(placed, fresh, count), jnp.where(placed[:, None], at / num_codes, total)
        mean = total / jnp.maximum(count, 1e-12)[:, None]
        vectors = jnp.where(((count * num_codes >= dead) & (count > 0))[:, None], mean, old.vectors)
        vectors = jnp.where(placed[:, None], at, vectors)
        some = jnp.sum(weight) > 0
        new = jax.tree.map(lambda new, old: jnp.where(some, new, old), Averages(vectors, count, total), old)
        return new, jnp.where(some, jnp.sum(placed, dtype=jnp.float32), 0)


def straight_through(x: Float[Array, "*batch dim"], vectors: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Returns `vectors`, with the gradient of x (Bengio et al. 2013)."""
    return x + jax.lax.stop_gradient(vectors - x)


def set_by_gradient(old: Averages, new: Averages) -> Float[Array, ""]:
    """Returns 0 with the gradient `old - new`: plain SGD at rate 1 replaces `old` by `new`."""
    new = jax.lax.stop_gradient(new)
    half = sum(0.5 * jnp.sum(jnp.square(before - after)) for before, after in zip(old, new, strict=True))
    return half - jax.lax.stop_gradient(half)
