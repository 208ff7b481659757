"""Every kernel computes the same as a plain loop over queries."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_speechlm.nn.attention.dot import attend, masked_attention
from jax_speechlm.parallel.mesh import BATCH_AXES, MeshShape, batch_sharding, make_mesh

BATCH, TIME, HEADS, GROUPS, WIDTH = 2, 150, 4, 2, 8  # longer than one block, and not a multiple of it
SHAPES = {"full": (False, None), "causal": (True, None), "causal-window": (True, 9), "window": (False, 9)}
KERNELS = ("reference", "blocked", "xla", "splash")


def inputs(batch=BATCH):
    rng = np.random.default_rng(0)
    shapes = [(batch, TIME, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    segment = np.ones((batch, TIME), np.int32)
    segment[0] = np.repeat([1, 2, 3, 0], [50, 1, 70, 29])
    return q, k, v, jnp.asarray(segment)


def loop(q, k, v, segment, causal, window):
    """One query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    segment, place = np.asarray(segment), np.arange(TIME)
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = segment[b] == segment[b, t]
        if causal:
            seen &= place <= t
        if window is not None:
            seen &= np.abs(place - t) <= window
        group = h * GROUPS // HEADS
        weights = np.exp(k[b, seen, group] @ q[b, t, h] / np.sqrt(WIDTH))
        out[b, t, h] = weights / weights.sum() @ v[b, seen, group]
    return out


@partial(jax.jit, static_argnames=("kernel", "causal", "window"))
def with_gradients(q, k, v, segment, kernel, causal, window):
    def loss(q, k, v):
        out = attend(q, k, v, segment, causal=causal, window=window, kernel=kernel)
        return jnp.sum(jnp.sin(out) * (segment > 0)[..., None, None]), out

    return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)


@pytest.fixture(scope="module", params=SHAPES)
def case(request):
    """(causal, window), the values and gradients of the reference, and the values of the loop."""
    causal, window = SHAPES[request.param]
    return (causal, window), with_gradients(*inputs(), "reference", causal, window), loop(*inputs(), causal, window)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree_with_the_loop_and_their_gradients_with_each_other(case, kernel):
    shape, (expected_gradients, _), expected = case
    gradients, out = with_gradients(*inputs(), kernel, *shape)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=2e-5)
        assert np.all(np.isfinite(gradient))
        assert not np.any(gradient[0, -29:])  # padding neither sees nor is seen


@pytest.mark.parametrize("tensor", [1, 2, 8], ids=["heads whole", "heads split", "heads that do not divide"])
def test_splash_runs_on_each_device_s_rows_and_heads(tensor):
    arrays = inputs(batch=8)
    expected = attend(*arrays, causal=True, window=None, kernel="reference")
    mesh = make_mesh(MeshShape(tensor=tensor))
    with jax.set_mesh(mesh):
        run = jax.jit(partial(attend, causal=True, window=None, kernel="splash"))
        out = run(*jax.device_put(arrays, batch_sharding(mesh)))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert out.addressable_shards[0].data.shape == (tensor, TIME, HEADS // (2 if tensor == 2 else 1), WIDTH)


SPREAD = [
    MeshShape(sequence=2),
    MeshShape(data=1, sequence=2, tensor=4),
    MeshShape(data=1, fsdp=2, sequence=2, tensor=2),
]


@pytest.mark.parametrize("shape", SPREAD, ids=["sequence", "heads that tensor does not divide too", "all"])
@pytest.mark.parametrize("kernel", ["blocked", "splash"])
def test_time_spread_over_devices_changes_no_value_and_no_gradient(case, kernel, shape):
    (causal, window), (expected_gradients, expected_out), _ = case
    q, k, v, segment = (jnp.tile(x, (4, *[1] * (x.ndim - 1))) for x in inputs())
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        place = jax.device_put((q, k, v, segment), NamedSharding(mesh, PartitionSpec(BATCH_AXES, "sequence")))
        gradients, out = with_gradients(*place, kernel, causal, window)
    for got, expected in zip((*gradients, out), (*expected_gradients, expected_out), strict=True):
        np.testing.assert_allclose(got, np.tile(expected, (4, 1, 1, 1)), atol=2e-5)


def test_heads_must_divide_over_the_devices_that_share_a_row():
    with (
        jax.set_mesh(make_mesh(MeshShape(sequence=8))),
        pytest.raises(ValueError, match="8 does not divide the model's 4"),
    ):
        jax.eval_shape(partial(attend, causal=True, window=None, kernel="blocked"), *inputs())


def test_auto_takes_the_fast_kernel_of_each_backend(monkeypatch):
    def lowered(backend, dtype):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        q, k, v, segment = inputs()
        run = jax.jit(lambda *arrays: attend(*arrays, causal=True, window=None, kernel="auto"))
        return run.trace(*(x.astype(dtype) for x in (q, k, v)), segment).lower(lowering_platforms=(backend,)).as_text()

    assert "tpu_custom_call" in lowered("tpu", jnp.bfloat16)
    assert "custom_call" not in lowered("cpu", jnp.bfloat16)
    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        lowered("gpu", jnp.bfloat16)


def test_softmax_is_float32_in_bfloat16():
    q, k, v, segment = inputs()
    expected = attend(q, k, v, segment, causal=True, window=None, kernel="reference")
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    for kernel in KERNELS:
        out = attend(*low, segment, causal=True, window=None, kernel=kernel)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.05)


def test_a_query_that_sees_nothing_is_finite_forward_and_backward():
    q, k, v, _ = inputs()
    mask = jnp.zeros((BATCH, TIME, TIME), bool)
    out, gradients = jax.value_and_grad(lambda *a: jnp.sum(masked_attention(*a, mask) ** 2), (0, 1, 2))(q, k, v)
    assert np.isfinite(out)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
