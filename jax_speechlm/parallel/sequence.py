"""Sequence parallelism: shards the time of long rows over the mesh axis "sequence".

Most of a model is applied to tokens or frames independently and needs only `mesh.shard_batch_and_time`. Two parts need
communication:

- Attention reshards by an all-to-all from a part of time for all heads to all of time for a part of the heads, so that
  kernels, masks and windows need no change (Jacobs et al. 2023, DeepSpeed-Ulysses).
- A convolution needs earlier frames, and later ones if it looks ahead, from neighbouring devices (halo exchange).
"""

from collections.abc import Callable
from math import ceil, gcd, prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree, Shaped

from jax_speechlm.parallel.mesh import BATCH_AXES, shard_batch_dim

AXIS = "sequence"


def num_shards() -> int:
    """Returns the number of devices that the time of a row is sharded over; 1 without a mesh."""
    return num_devices((AXIS,))


def padded_time(num: int) -> int:
    """Returns the number of tokens or frames, rounded up to a multiple of the devices."""
    return -(-num // num_shards()) * num_shards()  # integer arithmetic, because sizes may be symbolic


def pad_time(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "batch padded ..."]:
    """Pads x with zeros to `padded_time`."""
    extra = padded_time(x.shape[1]) - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x


def head_axes(num_heads: int) -> tuple[str, ...]:
    """Returns the mesh axes that attention shards its heads over: "sequence", and "tensor" if both divide the heads.

    Raises:
      ValueError: "sequence" does not divide the heads.
    """
    if num_heads % num_shards():
        raise ValueError(
            f"mesh.sequence={num_shards()} does not divide the model's {num_heads} attention heads, which it "
            "shards over devices: choose a divisor"
        )
    both = "tensor", AXIS
    return both if num_heads % num_devices(both) == 0 else (AXIS,)


def num_devices(axes: tuple[str, ...]) -> int:
    """Returns the number of devices along mesh axes; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else prod(mesh.shape[axis] for axis in axes)


def by_heads(
    attention: Callable[..., Float[Array, "batch time heads dim"]],
    q: Float[Array, "batch time heads query_dim"],
    k: Float[Array, "batch time kv_heads dim"],
    v: Float[Array, "batch time kv_heads dim"],
    *by_row: Shaped[Array, "batch time"],
) -> Float[Array, "batch time heads dim"]:
    """Runs `attention(q, k, v, *by_row)` over all of time, with the heads sharded over devices.

    Query head h reads key and value head h * kv_heads // heads. Time is a multiple of the devices; every device gets
    the small arrays `by_row` whole.

    Returns:
      The mixed values, with time sharded.
    """
    if num_shards() == 1:
        return attention(q, k, v, *by_row)
    axes = head_axes(q.shape[2])
    copies = num_devices(axes) // gcd(k.shape[2], num_devices(axes))  # for devices that share keys and values
    k, v = (jnp.repeat(x, copies, axis=2) if copies > 1 else x for x in (k, v))
    # Both ends of the all-to-all are constrained, because XLA would otherwise choose a gather.
    own_time, own_heads = (AXIS, axes[:-1]), (None, axes)
    q, k, v = (_sharded(_sharded(x, *own_time), *own_heads) for x in (q, k, v))
    mixed = attention(q, k, v, *map(shard_batch_dim, by_row))
    return _sharded(_sharded(mixed, *own_heads), *own_time)


def _sharded(x: Array, time: str | None, heads: tuple[str, ...]) -> Array:
    rows = BATCH_AXES if x.shape[0] % num_devices(BATCH_AXES) == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, time, heads or None))


def with_context(
    function: Callable[..., Float[Array, "batch time out"]],
    x: PyTree[Shaped[Array, "batch time ..."]],
    operands: tuple[Any, ...] = (),
    *,
    past: int = 0,
    future: int = 0,
) -> Float[Array, "batch time out"]:
    """Runs `function(x, *operands)`, a map over time with context, on each device's own frames.

    Args:
      x: one array or several; their time is a multiple of the devices.
      operands: pytrees of arrays that every device holds whole.
      past, future: frames of context; zeros before the first frame and after the last.

    Returns:
      The result, with time sharded.
    """
    if num_shards() == 1 or past == future == 0:
        return function(x, *operands)

    def local(x: PyTree[Array], *operands: Any) -> Array:
        own = jax.tree.leaves(x)[0].shape[1]

        def extend(x: Array) -> Array:
            return jnp.concatenate([*_frames_before(x, past), x, *_frames_after(x, future)], axis=1)

        return function(jax.tree.map(extend, x), *operands)[:, past : past + own]

    own = PartitionSpec(None, AXIS)
    specs = (own, *(PartitionSpec() for _ in operands))
    return jax.shard_map(local, in_specs=specs, out_specs=own, axis_names={AXIS}, check_vma=False)(x, *operands)


def _frames_before(x: Array, num: int) -> list[Array]:
    """Returns the `num` frames before a device's own, in pieces by device; zeros before the first."""
    own = x.shape[1]
    hops = range(ceil(num / own), 0, -1)
    return [_from_device(x[:, max(0, own - (num - (hop - 1) * own)) :], -hop) for hop in hops]


def _frames_after(x: Array, num: int) -> list[Array]:
    """Returns the `num` frames after a device's own, in pieces by device; zeros after the last."""
    own = x.shape[1]
    return [_from_device(x[:, : num - (hop - 1) * own], hop) for hop in range(1, ceil(num / own) + 1)]


def _from_device(x: Array, away: int) -> Array:
    """Returns the x of the device `away` places further along the axis; zeros beyond its ends."""
    pairs = [(device, device - away) for device in range(num_shards()) if 0 <= device - away < num_shards()]
    return jax.lax.ppermute(x, AXIS, pairs) if pairs else jnp.zeros_like(x)
