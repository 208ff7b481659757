"""Scaled dot-product attention within the segments of packed rows: one definition, several kernels.

softmax(q·k / sqrt(head_dim)) v over the visible keys: of the query's segment, none after it if causal, none further
away than the window. Padding is a segment like any other, so every query has a key, nothing is divided by zero, and the
values in padding affect no real token. Softmax is float32 in every kernel.
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.nn.attention.blocked import blocked_attention
from jax_speechlm.nn.attention.masks import masked_softmax, visible
from jax_speechlm.nn.functional import SAVED_ACTIVATION
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import BATCH_AXES, platform

Kernel = Literal["auto", "reference", "blocked", "xla", "cudnn", "splash"]
"""Implementation of attention: "reference" is the formula itself, "blocked" processes queries in blocks
(`blocked_attention`), "xla" is `jax.nn.dot_product_attention`, "cudnn" the same with cuDNN's flash attention (GPU,
bfloat16), "splash" the Pallas kernel for TPUs (interpreted elsewhere, for tests). "auto" selects one of the last two on
the hardware that they are for, else "blocked"."""

_LANES = 128  # splash needs blocks of a multiple of this many tokens
_LARGEST_BLOCK = 512


def attend(
    q_BxTxHxK: Float[Array, "batch time heads head_dim"],
    k_BxTxGxK: Float[Array, "batch time kv_heads head_dim"],
    v_BxTxGxK: Float[Array, "batch time kv_heads head_dim"],
    segment_BxT: Int[Array, "batch time"],
    *,
    causal: bool,
    window: int | None,
    kernel: Kernel,
) -> Float[Array, "batch time heads head_dim"]:
    """Computes self-attention of packed rows. Query head h reads key and value head h * kv_heads // heads.

    Args:
      segment_BxT: segment number for each token; a segment is contiguous, and tokens attend only within it.
      kernel: implementation; results agree up to rounding.

    Returns:
      The weighted means of the values, in their type.
    """
    if kernel == "auto":
        kernel = _fastest(q_BxTxHxK.dtype)
    mix = partial(_attend, causal=causal, window=window, kernel=kernel)
    return sequence.by_heads(mix, q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT)


def _attend(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT, causal, window, kernel):
    if kernel == "splash":
        return _splash(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT, causal, window)
    if kernel == "blocked":
        return blocked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT, causal, window)
    mask = visible(segment_BxT, causal, window)
    if kernel == "reference":
        return masked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, mask)
    # With is_causal, cuDNN skips the masked half; two-sided windows are not supported there and stay in the mask.
    return jax.nn.dot_product_attention(
        q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, mask=mask[:, None], is_causal=causal, implementation=kernel
    )


def masked_attention(
    q_BxTxHxK: Float[Array, "batch query heads head_dim"],
    k_BxSxGxK: Float[Array, "batch key kv_heads head_dim"],
    v_BxSxGxK: Float[Array, "batch key kv_heads head_dim"],
    mask_BxTxS: Bool[Array, "batch query key"],
) -> Float[Array, "batch query heads head_dim"]:
    """Computes attention by its formula, as a reference for all kernels.

    Args:
      mask_BxTxS: True where a query may attend to a key; without any key a query gets the mean of all values.

    Returns:
      The weighted means of the values, in their type.
    """
    batch, queries, heads, head_dim = q_BxTxHxK.shape
    groups = k_BxSxGxK.shape[2]
    q_BxTxGxRxK = q_BxTxHxK.reshape(batch, queries, groups, heads // groups, head_dim) * head_dim**-0.5
    scores = jnp.einsum("btgrk,bsgk->bgrts", q_BxTxGxRxK, k_BxSxGxK, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores, mask_BxTxS[:, None, None], v_BxSxGxK.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, v_BxSxGxK).reshape(q_BxTxHxK.shape)


def _fastest(dtype: jnp.dtype) -> Kernel:
    backend = platform()
    if backend == "tpu":
        return "splash"
    return "cudnn" if backend == "gpu" and dtype == jnp.bfloat16 else "blocked"


def _splash(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT, causal, window):
    """Runs splash attention on each device's rows and heads, because XLA cannot partition a Pallas kernel."""
    heads, groups = q_BxTxHxK.shape[2], k_BxTxGxK.shape[2]

    def local(q, k, v, segment):
        kernel, length = _splash_kernel(q.shape[1], q.shape[2], causal, window)

        def pad(x):
            return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

        q, k, v = (pad(x).swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        segment = pad(segment + 1)  # the padding of the last block is a segment of its own
        return jax.vmap(kernel)(q, k, v, _segment_ids(segment)).swapaxes(1, 2)[:, : q_BxTxHxK.shape[1]]

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT)
    across = sequence.head_axes(math.gcd(heads, groups))
    array, rows = PartitionSpec(BATCH_AXES, None, across, None), PartitionSpec(BATCH_AXES, None)
    return jax.shard_map(local, in_specs=(array, array, array, rows), out_specs=array, check_vma=False)(
        q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segment_BxT
    )


def _splash_kernel(num_tokens, num_heads, causal, window):
    """Returns the kernel for rows of `num_tokens`, and the length that they must be padded to."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    blocks = math.ceil(num_tokens / _LANES)
    # The largest block that divides the padded row.
    block = _LANES * max(b for b in range(1, _LARGEST_BLOCK // _LANES + 1) if blocks % b == 0)
    length = blocks * _LANES
    if causal or window is not None:
        mask = masks.LocalMask((length, length), (window, 0 if causal else window), offset=0)
    else:
        mask = masks.FullMask((length, length))
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = kernels.BlockSizes(**{f"block_{name}": block for name in names})
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * num_heads),
        block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=SAVED_ACTIVATION,
        interpret=platform() != "tpu",
    )  # fmt: skip
    return kernel, length


def _segment_ids(segment):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    return kernels.SegmentIds(segment, segment)
