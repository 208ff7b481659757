import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn import functional
from jax_speechlm.nn.attention.relative import chunk_mask, relative_shift
from jax_speechlm.nn.layers import FrameKeys, LayerNorm, Linear, RMSNorm, depthwise, dropout, split_keys
from jax_speechlm.parallel import mesh as meshes


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("lengths", [None, (7, 0, 9), (5, 1, 1, 12)])
@pytest.mark.parametrize(
    ("num_frames", "taps", "ahead"), [(1, 5, 0), (16, 5, 0), (21, 31, 0), (50, 3, 0), (30, 5, 2), (30, 31, 15)]
)
def test_depthwise_convolution_and_its_gradients_are_those_of_the_definition(num_frames, taps, ahead, lengths):
    x, kernel, weight = normal(0, (2, num_frames, 3)), normal(1, (taps, 3)), normal(2, (2, num_frames, 3))
    segment = None
    if lengths is not None:
        segment = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:num_frames]
        segment = np.stack([np.pad(row, (0, num_frames - len(row))) for row in (segment, segment[::2])])

    t, s, k = np.ogrid[:num_frames, :num_frames, :taps]
    used = np.broadcast_to(s == t + ahead - taps + 1 + k, (2, num_frames, num_frames, taps)).astype(np.float32)
    if segment is not None:
        used = used * (segment[:, :, None] == segment[:, None, :])[..., None]

    def by_definition(x, kernel):
        return jnp.einsum("btsk,bsd,kd->btd", used, x, kernel, precision="highest")

    def by_product(x, kernel):
        return depthwise(x, kernel, None if segment is None else jnp.asarray(segment), ahead)

    def total(convolve):
        return lambda x, kernel: jnp.vdot(convolve(x, kernel), weight)

    np.testing.assert_allclose(jax.jit(by_product)(x, kernel), by_definition(x, kernel), atol=1e-5)
    actual = jax.jit(jax.grad(total(by_product), (0, 1)))(x, kernel)
    expected = jax.jit(jax.grad(total(by_definition), (0, 1)))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)


@pytest.mark.parametrize(("platform", "fences"), [("cpu", 0), ("tpu", 0), ("gpu", 4)])
def test_depthwise_convolution_is_fused_with_nothing_on_gpus(platform, fences, monkeypatch):
    """Both ends of the sum and of its gradient; the compiler takes a quarter of an hour otherwise."""
    monkeypatch.setattr(meshes, "platform", lambda: platform)
    step = jax.value_and_grad(lambda x, kernel: jnp.sum(depthwise(x, kernel) ** 2), (0, 1))
    lowered = jax.jit(step).lower(normal(0, (2, 20, 3)), normal(1, (5, 3)))
    assert lowered.as_text().count("= stablehlo.optimization_barrier") == fences


@pytest.mark.parametrize(("num_frames", "left", "right"), [(1, 2, 3), (4, 6, 6), (20, 6, 3), (9, 0, 0), (12, 3, 0)])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_scores_are_spread_by_clipped_distance(num_frames, left, right, parts):
    """For all queries at once, and for a stretch of them."""
    queries, first = max(1, num_frames // parts), num_frames // parts * (parts - 1)
    scores = normal(0, (2, 3, queries, left + 1 + right))
    distance = np.arange(num_frames)[None, :] - (first + np.arange(queries))[:, None]
    index = np.clip(distance, -left, right) + left
    expected = np.take_along_axis(scores, np.broadcast_to(index, (2, 3, *index.shape)), axis=-1)

    def spread(scores):
        return relative_shift(scores, first, num_frames, left, right)

    np.testing.assert_array_equal(spread(scores), expected)

    weight = np.asarray(normal(1, expected.shape))
    gradient = jax.grad(lambda scores: jnp.vdot(spread(scores), weight))(scores)
    for place in range(left + 1 + right):
        total = np.where(index == place, weight, 0).sum(-1)
        np.testing.assert_allclose(gradient[..., place], total, atol=1e-5)


def test_a_chunk_sees_itself_and_the_chunks_to_its_left():
    expected = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
    frames = jnp.arange(5)
    np.testing.assert_array_equal(chunk_mask(frames, frames, (2, 1)), expected)
    np.testing.assert_array_equal(chunk_mask(frames[3:], frames, (2, 1)), expected[3:])
    assert chunk_mask(frames, frames, (2, -1))[4].all()
    assert chunk_mask(frames, frames, (1000, 0)).all()
    assert chunk_mask(frames, frames, None)


def test_linear_sums_over_several_dimensions_and_starts_with_unit_gain():
    def make(rngs):
        return Linear((4, 64), (512,), ("heads", "head_dim", "embed"), rngs=rngs)

    declared, params = functional.declare(make), functional.init(make, jax.random.key(0))
    assert declared.axes == {"kernel": ("heads", "head_dim", "embed"), "bias": ("embed",)}
    x = normal(0, (50, 4, 64))
    y = functional.bind(declared.graphdef, params)(x)
    np.testing.assert_allclose(y, np.einsum("bhk,hkd->bd", x, params["kernel"]), atol=1e-4)
    assert 0.9 < float(jnp.std(y)) < 1.1


def test_layer_norm_keeps_statistics_in_float32():
    def make(rngs):
        return LayerNorm(64, rngs=rngs)

    graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))
    x = 1000 + normal(0, (3, 64))
    y = functional.bind(graphdef, params)(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)
    assert functional.bind(graphdef, params)(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_norms_without_offset():
    x = 1000 + normal(0, (3, 64))
    for make, center in (
        (lambda rngs: LayerNorm(64, bias=False, rngs=rngs), True),
        (lambda rngs: RMSNorm(64, rngs=rngs), False),
    ):
        graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))
        assert list(params) == ["scale"]
        params = {"scale": normal(1, (64,))}
        expected = np.asarray(x, np.float64)
        if center:
            expected = expected - expected.mean(-1, keepdims=True)
        expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True)) * np.asarray(params["scale"])
        np.testing.assert_allclose(functional.bind(graphdef, params)(x), expected, atol=1e-3)
        assert functional.bind(graphdef, params)(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


class TestDropout:
    keys = jax.random.split(jax.random.key(0), 4)

    @pytest.mark.parametrize("shape", [(300, 200), (4, 100, 120)])
    def test_drops_at_the_rate_and_keeps_the_mean(self, shape):
        y = np.asarray(dropout(jnp.ones((4, *shape)), 0.1, self.keys))
        assert np.all((y == 0) | np.isclose(y, 1 / 0.9))
        assert abs(np.mean(y == 0) - 0.1) < 0.01
        for axis in range(1, y.ndim):  # no row, column or head is favoured
            others = tuple(a for a in range(y.ndim) if a not in (0, axis))
            six_sigma = 6 * np.sqrt(0.1 * 0.9 / np.prod([y.shape[a] for a in others]))
            assert np.max(np.abs(np.mean(y == 0, axis=others) - 0.1)) < six_sigma

    def test_a_row_draws_from_its_key_and_an_element_from_its_place(self):
        x = jnp.ones((4, 3, 20, 30))
        y = dropout(x, 0.3, self.keys)
        longer = dropout(jnp.ones((4, 3, 25, 41)), 0.3, self.keys)
        np.testing.assert_array_equal(longer[:, :, :20, :30], y)
        np.testing.assert_array_equal(dropout(x, 0.3, self.keys[::-1]), y[::-1])

    def test_an_utterance_draws_from_its_own_key_wherever_it_lies_in_a_row(self):
        alone = dropout(jnp.ones((4, 20, 30)), 0.3, self.keys)
        segments = Segments(jnp.array([[0, 12], [0, 9]]), jnp.array([[12, 20], [7, 0]]))
        packed = dropout(jnp.ones((2, 35, 30)), 0.3, FrameKeys(self.keys[jnp.array([[2, 1], [3, 0]])], segments))
        np.testing.assert_array_equal(packed[0, :12], alone[2, :12])
        np.testing.assert_array_equal(packed[0, 12:32], alone[1])
        np.testing.assert_array_equal(packed[1, :7], alone[3, :7])

    def test_neighbours_and_rows_are_uncorrelated(self):
        y = np.asarray(dropout(jnp.ones((4, 200, 256)), 0.5, self.keys)) > 0
        for a, b in [(y[:, 1:], y[:, :-1]), (y[..., 1:], y[..., :-1]), (y[..., 2:], y[..., :-2]), (y[1:], y[:-1])]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02

    def test_off_without_keys_or_rate(self):
        x = normal(0, (4, 3, 5))
        assert dropout(x, 0.5, None) is x
        assert dropout(x, 0.0, self.keys) is x

    def test_split_keys(self):
        a, b = split_keys(self.keys, 2)
        assert a.shape == b.shape == (4,)
        assert len(np.unique(jax.random.key_data(jnp.concatenate([a, b])), axis=0)) == 8
        assert split_keys(None, 3) == (None, None, None)
