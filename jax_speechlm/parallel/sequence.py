"""Long rows: what it takes to spread the time of each row over the mesh axis "sequence".

Most of a model works on each token or frame by itself and needs only `mesh.shard_batch_and_time`. Two things do not:

- Attention changes places by an all-to-all: before it, a device has its stretch of time of all heads, within it all of
  time of its own heads, so that every kernel, mask and window stays what it is (Jacobs et al. 2023, DeepSpeed-Ulysses).
- A convolution needs the frames before its own, and behind where it looks ahead, which neighbours send (halo exchange).
"""

from collections.abc import Callable
from math import ceil, gcd, prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from jax_speechlm.parallel.mesh import BATCH_AXES, shard_batch_dim

AXIS = "sequence"


def num_shards() -> int:
    """Devices that the time of a row is spread over: 1 where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[AXIS]


def padded_time(num: int) -> int:
    """The next number of tokens or frames that divides among the devices."""
    return -(-num // num_shards()) * num_shards()  # in whole numbers: sizes may be symbolic


def pad_time(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch padded ..."]:
    """x filled up with zeros to `padded_time`."""
    more = padded_time(x.shape[1]) - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x


def head_axes(num_heads: int) -> tuple[str, ...]:
    """The mesh axes that attention spreads its heads over: "tensor", where it divides them too, and "sequence".

    Raises:
      ValueError: "sequence" does not divide the heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if num_heads % mesh.shape[AXIS]:
        raise ValueError(
            f"mesh.sequence={mesh.shape[AXIS]} does not divide the model's {num_heads} attention heads, which it "
            "spreads over devices: choose one that does"
        )
    both = "tensor", AXIS
    return both if num_heads % num_devices(both) == 0 else (AXIS,)


def num_devices(axes: tuple[str, ...]) -> int:
    """Devices along mesh axes."""
    return prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def by_heads(
    attention: Callable[..., Float[Array, "batch time heads dim"]],
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch time kv_heads dim"],
    v: Float[Array, "batch time kv_heads dim"],
    *by_row: Shaped[Array, "batch time"],
) -> Float[Array, "batch time heads dim"]:
    """`attention(q, k, v, *by_row)`, which looks at all of time, with each device doing some of the heads.

    Args:
      attention: gives the mixed values. Head h of the queries reads head h * kv_heads // heads of keys and values.
      q, k, v: their time divides among the devices.
      by_row: what is small, and given whole.
    """
    if num_shards() == 1:
        return attention(q, k, v, *by_row)
    axes = head_axes(q.shape[2])
    copies = num_devices(axes) // gcd(k.shape[2], num_devices(axes))  # so that devices can share keys and values
    k, v = (jnp.repeat(x, copies, axis=2) if copies > 1 else x for x in (k, v))
    # Both ends of each exchange are said, or XLA would look for another way between them, by gathering.
    own_time, own_heads = (AXIS, axes[:-1]), (None, axes)
    q, k, v = (_laid(_laid(x, *own_time), *own_heads) for x in (q, k, v))
    mixed = attention(q, k, v, *map(shard_batch_dim, by_row))
    return _laid(_laid(mixed, *own_heads), *own_time)


def _laid(x: Array, time: str | None, heads: tuple[str, ...]) -> Array:
    rows = BATCH_AXES if x.shape[0] % num_devices(BATCH_AXES) == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, time, heads or None))


def with_context(
    function: Callable[..., Float[Array, "batch time out"]],
    x: Float[Array, "batch time dim"],
    operands: tuple[Any, ...] = (),
    *,
    past: int = 0,
    future: int = 0,
) -> Float[Array, "batch time out"]:
    """`function(x, *operands)`, a map over time that looks some frames back and ahead, on each device's own frames.

    Args:
      x: its time divides among the devices.
      operands: pytrees of arrays that every device has whole.
      past, future: how many frames; before the first and behind the last stand zeros.
    """
    if num_shards() == 1 or past == future == 0:
        return function(x, *operands)

    def local(x: Array, *operands: Any) -> Array:
        own = x.shape[1]
        x = jnp.concatenate([*_frames_before(x, past), x, *_frames_behind(x, future)], axis=1)
        return function(x, *operands)[:, past : past + own]

    own = PartitionSpec(None, AXIS)
    specs = (own, *(PartitionSpec() for _ in operands))
    return jax.shard_map(local, in_specs=specs, out_specs=own, axis_names={AXIS}, check_vma=False)(x, *operands)


def _frames_before(x: Array, num: int) -> list[Array]:
    """The `num` frames before a device's own, in pieces of one device each: zeros before the first."""
    own = x.shape[1]
    hops = range(ceil(num / own), 0, -1)
    return [_from_device(x[:, max(0, own - (num - (hop - 1) * own)) :], -hop) for hop in hops]


def _frames_behind(x: Array, num: int) -> list[Array]:
    """The `num` frames behind a device's own likewise: zeros behind the last."""
    own = x.shape[1]
    return [_from_device(x[:, : num - (hop - 1) * own], hop) for hop in range(1, ceil(num / own) + 1)]


def _from_device(x: Array, away: int) -> Array:
    """x of the device so many places further along; zeros where there is none."""
    pairs = [(device, device - away) for device in range(num_shards()) if 0 <= device - away < num_shards()]
    return jax.lax.ppermute(x, AXIS, pairs) if pairs else jnp.zeros_like(x)
