"""Cross-entropy over a large vocabulary, computed in chunks so that the logits never exist all at once."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import BATCH_AXES, TOKEN_AXES, gather_residual

CHUNK_LOGITS = 1 << 27
"""Logits that a device computes at a time: 0.5 GiB of float32. Each chunk reads and writes the kernel's gradient, which
bounds small chunks by memory."""


class TokenScores(NamedTuple):
    """Statistics per token, without gradients.

    Attributes:
      nll: negative log-likelihood of the target in nats.
      log_z: logarithm of the sum of exponentiated logits, which the z-loss keeps near 0.
      correct: whether no logit is above the target's.
    """

    nll: Float[Array, "batch time"]
    log_z: Float[Array, "batch time"]
    correct: Bool[Array, "batch time"]


def vocabulary_loss(
    hidden_BxTxD: Float[Array, "batch time dim"],
    kernel_VxD: Float[Array, "vocab dim"],
    target_BxT: Int[Array, "batch time"],
    weight_BxT: Float[Array, "batch time"],
    *,
    bias_V: Float[Array, " vocab"] | None = None,
    z_weight: float = 0.0,
    chunk: int | None = None,
) -> tuple[Float[Array, ""], TokenScores]:
    """Computes the sum over tokens of weight * (-log softmax(hidden @ kernel.T + bias)[target] + z_weight * log_z^2).

    The z-loss follows Chowdhery et al. 2022 (PaLM, section 5). On each device, logits exist for `chunk` tokens at a
    time. Under differentiation the gradient of a chunk is computed together with its loss, from the same logits: this
    takes three matrix products, as the direct form does, and neither stores nor recomputes the logits.

    Args:
      hidden_BxTxD: hidden states in the compute type of the products; sums and softmax are float32.
      target_BxT: ids below V.
      weight_BxT: weight per token; 0 excludes it.
      chunk: tokens that a device computes at a time; None for as many as give `CHUNK_LOGITS` logits.

    Returns:
      The loss, and the statistics per token.
    """
    time = hidden_BxTxD.shape[1]
    hidden, target, weight = map(sequence.pad_time, (hidden_BxTxD, target_BxT, weight_BxT))
    hidden = gather_residual(hidden)
    chunk = _tokens_at_a_time(kernel_VxD.shape[0]) if chunk is None else chunk
    total, scores = _loss(hidden, kernel_VxD, bias_V, target, weight, z_weight, chunk)
    return total, jax.tree.map(lambda x: jax.lax.stop_gradient(x)[:, :time], scores)


def _tokens_at_a_time(vocab_size):
    """Returns the number of tokens whose logits on one device, of its shard of the vocabulary, are `CHUNK_LOGITS`."""
    tensor = sequence.num_devices(("tensor",))
    return max(1, CHUNK_LOGITS // (vocab_size // tensor if vocab_size % tensor == 0 else vocab_size))


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _loss(hidden, kernel, bias, target, weight, z_weight, chunk):
    def own_loss(hidden, target, weight, kernel, bias, total):
        del weight, total

        def step(_, part):
            hidden, target = part
            return None, _score(_logits(hidden, kernel, bias), target)

        return _join(jax.lax.scan(step, None, _cut((hidden, target), chunk))[1], target.shape), ()

    scores, _ = _on_own_tokens(own_loss, (hidden, target, weight), kernel.astype(hidden.dtype), bias)
    return jnp.sum(weight * _with_z(scores, z_weight)), scores


def _forward(hidden, kernel, bias, target, weight, z_weight, chunk):
    def own_loss(hidden, target, weight, kernel, bias, total):
        def step(gradients, part):
            hidden, target, weight = part
            logits = _logits(hidden, kernel, bias)
            scores = _score(logits, target)
            share = jnp.exp(logits - scores.log_z[..., None])
            share = share * (1 + 2 * z_weight * scores.log_z)[..., None] - _is_target(logits, target)
            by_logits = (share * weight[..., None]).astype(hidden.dtype)
            to_kernel = jnp.einsum("nv,nd->vd", by_logits, hidden, preferred_element_type=jnp.float32)
            to_bias = None if bias is None else by_logits.astype(jnp.float32).sum(0)
            gradients = jax.tree.map(jnp.add, gradients, (to_kernel, to_bias))
            return gradients, (scores, jnp.einsum("nv,vd->nd", by_logits, kernel))

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (kernel, bias))
        gradients, chunks = jax.lax.scan(step, zeros, _cut((hidden, target, weight), chunk))
        return _join(chunks, target.shape), jax.tree.map(total, gradients)

    (scores, to_hidden), (to_kernel, to_bias) = _on_own_tokens(
        own_loss, (hidden, target, weight), kernel.astype(hidden.dtype), bias
    )
    losses = _with_z(scores, z_weight)
    to_bias = None if bias is None else to_bias.astype(bias.dtype)
    return (jnp.sum(weight * losses), scores), (to_hidden, to_kernel.astype(kernel.dtype), to_bias, losses)


def _on_own_tokens(own_loss, by_token, kernel, bias):
    """Runs `own_loss(*by_token, kernel, bias, total) -> (by token, sums)` on each device's own tokens.

    XLA's own partitioning would gather the kernel and reduce its gradient over devices once for every chunk. Here each
    device gets the whole kernel (or its shard of the vocabulary) once, and `total` reduces over devices the sums of all
    chunks.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = sequence.num_devices(TOKEN_AXES)
    if shards == 1 or by_token[0].shape[0] % sequence.num_devices(BATCH_AXES):
        return own_loss(*by_token, kernel, bias, lambda x: x)
    tokens, whole = PartitionSpec(BATCH_AXES, sequence.AXIS), PartitionSpec()
    fsdp = kernel.shape[1] % mesh.shape["fsdp"] == 0
    to_kernel = PartitionSpec(None, "fsdp") if fsdp else whole

    def total(x):
        if x.ndim == 2 and fsdp:  # gradient of the kernel: each device keeps the shard that its optimizer updates
            x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True)
            return jax.lax.psum(x, tuple(axis for axis in TOKEN_AXES if axis != "fsdp"))
        return jax.lax.psum(x, TOKEN_AXES)

    sums = jax.eval_shape(lambda *arrays: own_loss(*arrays, lambda x: x)[1], *by_token, kernel, bias)
    out = (tokens, jax.tree.map(lambda x: to_kernel if x.ndim == 2 else whole, sums))
    return jax.shard_map(
        lambda *arrays: own_loss(*arrays, total),
        in_specs=((tokens,) * len(by_token)) + (whole, whole),
        out_specs=out,
        axis_names=set(TOKEN_AXES),
        check_vma=False,
    )(*by_token, kernel, bias)


def _backward(z_weight, chunk, residuals, cotangents):
    to_hidden, to_kernel, to_bias, to_weight = jax.tree.map(
        lambda gradient: (gradient * cotangents[0]).astype(gradient.dtype), residuals
    )
    return to_hidden, to_kernel, to_bias, None, to_weight


_loss.defvjp(_forward, _backward)


def _logits(hidden, kernel, bias):
    logits = jnp.einsum("nd,vd->nv", hidden, kernel, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias


def _is_target(logits, target):
    # A comparison instead of a gather: with a sharded vocabulary each device compares its own shard.
    return jax.lax.broadcasted_iota(target.dtype, logits.shape, 1) == target[..., None]


def _score(logits, target):
    top = logits.max(-1)
    log_z = top + jnp.log(jnp.exp(logits - top[..., None]).sum(-1))
    at_target = jnp.sum(jnp.where(_is_target(logits, target), logits, 0), axis=-1)
    return TokenScores(log_z - at_target, log_z, at_target >= top)


def _with_z(scores, z_weight):
    return scores.nll + z_weight * jnp.square(scores.log_z)


def _cut(arrays, chunk):
    """[batch, time, ...] -> [chunks, tokens, ...]: equal chunks of at most `chunk`, the last padded with weight 0."""
    num_tokens = math.prod(arrays[-1].shape)
    chunks = math.ceil(num_tokens / chunk)
    size = math.ceil(num_tokens / chunks)

    def cut(x):
        x = x.reshape(num_tokens, *x.shape[2:])
        x = jnp.pad(x, [(0, chunks * size - num_tokens)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(chunks, size, *x.shape[1:])

    return jax.tree.map(cut, arrays)


def _join(chunks, shape):
    """Inverts `_cut`; `shape` is (batch, time)."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: math.prod(shape)].reshape(*shape, *x.shape[2:]), chunks)
