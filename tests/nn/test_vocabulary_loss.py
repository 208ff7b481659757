"""The chunked vocabulary loss: equal to the plain one, without its memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jax_speechlm.nn import vocabulary_loss as vocabulary_losses
from jax_speechlm.nn.vocabulary_loss import CHUNK_LOGITS, vocabulary_loss
from jax_speechlm.parallel.mesh import BATCH_AXES, MeshShape, make_mesh

BATCH, TIME, DIM, VOCAB = 2, 13, 8, 40


def inputs(seed: int, batch: int = BATCH, time: int = TIME, dim: int = DIM, vocab: int = VOCAB):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(0, 1, shape).astype(np.float32)

    target = rng.integers(0, vocab, (batch, time)).astype(np.int32)
    weight = (rng.random((batch, time)) * (rng.random((batch, time)) < 0.7)).astype(np.float32)
    return draw(batch, time, dim), draw(vocab, dim), draw(vocab), target, weight


def oracle(hidden, kernel, bias, target, weight, z_weight):
    """Loss, nll and log_z in float64, and the gradients of the loss, written out."""
    hidden, kernel, bias, weight = (np.asarray(x, np.float64) for x in (hidden, kernel, bias, weight))
    logits = hidden @ kernel.T + bias
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, target[..., None], -1)[..., 0]
    losses = nll + z_weight * log_z**2
    share = np.exp(logits - log_z[..., None])
    by_logits = weight[..., None] * (share * (1 + 2 * z_weight * log_z)[..., None] - np.eye(len(kernel))[target])
    gradients = (
        by_logits @ kernel,
        np.einsum("btv,btd->vd", by_logits, hidden),
        by_logits.sum((0, 1)),
        losses,  # with respect to the weights
    )
    return (weight * losses).sum(), nll, log_z, logits.argmax(-1) == target, gradients


@functools.cache
def compiled(chunk, z_weight, with_bias=True):
    def run(hidden, kernel, bias, weight, target):
        bias = bias if with_bias else None
        return vocabulary_loss(hidden, kernel, target, weight, bias_V=bias, z_weight=z_weight, chunk=chunk)

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True)), jax.jit(run)


@pytest.mark.parametrize("chunk", [1, 5, 26, None])
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_equals_the_plain_loss_and_its_gradient(chunk, z_weight):
    hidden, kernel, bias, target, weight = inputs(0)
    total, nll, log_z, correct, expected = oracle(hidden, kernel, bias, target, weight, z_weight)
    with_gradient, alone = compiled(chunk, z_weight)
    (loss, scores), gradients = with_gradient(hidden, kernel, bias, weight, target)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(scores.nll, nll, atol=1e-5)
    np.testing.assert_allclose(scores.log_z, log_z, atol=1e-5)
    np.testing.assert_array_equal(scores.correct, correct)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    for here, there in zip(jax.tree.leaves(alone(hidden, kernel, bias, weight, target)), [loss, *scores], strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6)


def test_a_bias_is_optional():
    hidden, kernel, bias, target, weight = inputs(1)
    total, *_, expected = oracle(hidden, kernel, 0 * bias, target, weight, 0.0)
    (loss, _), gradients = compiled(4, 0.0, with_bias=False)[0](hidden, kernel, bias, weight, target)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], expected[1], atol=1e-5)
    assert not gradients[2].any()


@settings(max_examples=20)
@given(seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 100.0]), order=st.permutations(range(TIME)))
def test_tokens_without_weight_never_count(seed, scale, order):
    hidden, kernel, bias, target, weight = inputs(seed)
    hidden = hidden * scale
    run, _ = compiled(5, 0.1)
    (loss, _), gradients = run(hidden, kernel, bias, weight, target)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not gradients[0][weight == 0].any()
    other = np.where((weight == 0)[..., None], hidden + 3, hidden), np.where(weight == 0, 1, target)
    moved = [np.asarray(x)[:, np.array(order)] for x in (other[0], weight, other[1])]
    (again, _), moved_gradients = run(moved[0], kernel, bias, moved[1], moved[2])
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    np.testing.assert_allclose(moved_gradients[1], gradients[1], rtol=1e-4, atol=1e-4 * max(1.0, scale))


def sizes(hlo: str) -> set[int]:
    """How many elements each floating-point array in a compiled program has."""
    return {math.prod(map(int, dims.split(","))) for dims in re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", hlo)}


def test_a_large_vocabulary_never_has_all_its_logits_in_memory():
    batch, time, dim, vocab = 2, 4096, 16, 128_000

    def shape(*dims):
        return jax.ShapeDtypeStruct(dims, jnp.float32)

    target = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    arrays = shape(batch, time, dim), shape(vocab, dim), target, shape(batch, time)

    def run(hidden, kernel, target, weight):
        return vocabulary_loss(hidden, kernel, target, weight)[0]

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1))).lower(*arrays).compile()
    largest = max(CHUNK_LOGITS, vocab * dim)
    assert max(sizes(both.as_text())) <= largest < batch * time * vocab / 7
    kernels = 4 * vocab * dim
    assert both.memory_analysis().temp_size_in_bytes < 3 * 4 * CHUNK_LOGITS + 3 * kernels
    alone = jax.jit(run).lower(*arrays).compile()
    assert alone.memory_analysis().temp_size_in_bytes < 2 * 4 * CHUNK_LOGITS + 3 * kernels


@pytest.mark.parametrize("tokens", [1, 3, 7, 100])
def test_the_size_of_a_chunk_changes_no_result(monkeypatch, tokens):
    """Chunks are sized by a device's logits: of its rows, its part of their time and its shard of the vocabulary."""
    mesh, vocab = make_mesh(MeshShape(data=2, sequence=2, tensor=2)), 64
    hidden, kernel, bias, target, weight = inputs(3, batch=4, time=13, vocab=vocab)
    expected_loss, nll, *_, expected = oracle(hidden, kernel, bias, target, weight, 0.1)
    monkeypatch.setattr(vocabulary_losses, "CHUNK_LOGITS", tokens * vocab // 2)
    with jax.set_mesh(mesh):
        run = jax.jit(compiled.__wrapped__(None, 0.1)[0])
        (loss, scores), gradients = run(hidden, kernel, bias, weight, target)
        trips = re.findall(
            r"scan\[.*?length=(\d+)", str(jax.make_jaxpr(run)(hidden, kernel, bias, weight, target)), re.S
        )
    assert set(trips) == {str(math.ceil(2 * 7 / tokens))}  # a device has two rows of seven tokens
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(scores.nll, nll, atol=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_devices_share_the_vocabulary():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    hidden, kernel, bias, target, weight = inputs(2, batch=8, time=12, dim=8, vocab=64)
    expected_loss, *_, expected = oracle(hidden, kernel, bias, target, weight, 0.1)

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        arrays = (
            place(hidden, BATCH_AXES),
            place(kernel, "tensor", "fsdp"),
            place(bias, "tensor"),
            place(weight, BATCH_AXES),
            place(target, BATCH_AXES),
        )
        program = compiled(6, 0.1)[0].lower(*arrays).compile()
        (loss, _), gradients = program(*arrays)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    # One device's logits of a chunk: its rows, and its half of the vocabulary.
    gathered = re.findall(r"f32\[([\d,]+)\]\S* all-gather", program.as_text())
    assert all(not dims.endswith(",64") for dims in gathered), gathered
