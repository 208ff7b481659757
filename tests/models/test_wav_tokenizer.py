import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest

from jax_speechlm.interop.hf import wav_tokenizer
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.codec.codebook import Averages, Codebook, set_by_gradient, straight_through
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer, WavTokenizerConfig
from jax_speechlm.nn import functional
from tests.golden import make_wav_tokenizer

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "wav_tokenizer.npz")
WEIGHTS = {name.removeprefix("weights/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("weights/")}
DECAY, DEAD = 0.9, 0.2


def test_codes_and_samples_are_those_of_hugging_face():
    config = wav_tokenizer.config_from_hugging_face(json.loads(str(GOLDEN["config"])))
    params = read(wav_tokenizer.sources(WEIGHTS, config))["autoencoder"]
    graphdef = functional.declare(lambda rngs: WavTokenizer(config, rngs=rngs)).graphdef
    audio, lengths = make_wav_tokenizer.waveforms(), np.array(make_wav_tokenizer.LENGTHS)
    rows = np.full((len(audio), lengths.max() + 700), 9, np.float32)  # junk behind the utterances
    for row, samples in zip(rows, audio, strict=True):
        row[: len(samples)] = samples
    module = functional.bind(graphdef, params)
    code_ids, num_codes = jax.jit(lambda rows, lengths: module.encode(rows, lengths))(rows, lengths)
    decoded, num_samples = jax.jit(lambda rows, lengths: module.decode(rows, lengths))(code_ids, num_codes)
    for row in range(len(audio)):
        codes, samples = GOLDEN[f"codes_{row}"], GOLDEN[f"samples_{row}"]
        np.testing.assert_array_equal(code_ids[row, : num_codes[row]], codes)
        assert num_samples[row] == len(samples)
        np.testing.assert_allclose(decoded[row, : len(samples)], samples, atol=1e-5)


def test_weights_come_back_bit_for_bit():
    config = wav_tokenizer.config_from_hugging_face(json.loads(str(GOLDEN["config"])))
    params = read(wav_tokenizer.sources(WEIGHTS, config))
    arrays = wav_tokenizer.to_hugging_face(params, config)
    assert {name: array.shape for name, array in arrays.items()} == {name: x.shape for name, x in WEIGHTS.items()}
    jax.tree.map(np.testing.assert_array_equal, read(wav_tokenizer.sources(arrays, config)), params)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("use_causal_conv", True, "use_causal_conv"),
        ("norm_type", "time_group_norm", "norm_type"),
        ("pad_mode", "constant", "pad_mode"),
        ("codebook_dim", 4, "codebook_dim"),
    ],
)
def test_other_forms_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        wav_tokenizer.config_from_hugging_face(json.loads(str(GOLDEN["config"])) | {name: value})


@pytest.mark.parametrize("changes", [{"dim": 100, "num_groups": 32}, {"strides": (5, 3)}, {"num_filters": 9}])
def test_shapes_that_do_not_fit_are_refused(changes):
    with pytest.raises(pydantic.ValidationError):
        WavTokenizerConfig(**changes)


def test_the_rate_follows_from_the_strides():
    assert WavTokenizerConfig().num_codes(16_000) == 50
    assert WavTokenizerConfig(strides=(4, 4, 5, 8)).num_codes(16_000) == 25
    np.testing.assert_array_equal(WavTokenizerConfig().num_codes(np.array([0, 1, 320, 321])), [0, 1, 1, 2])


def codebook(vectors, count, total):
    params = {"vectors": jnp.array(vectors), "count": jnp.array(count), "total": jnp.array(total)}
    graphdef = functional.declare(lambda rngs: Codebook(*np.shape(vectors), rngs=rngs)).graphdef
    return functional.bind(graphdef, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def drawn(seed, codes=6, frames=40, dim=3):
    rng = np.random.default_rng(seed)
    vectors, x = rng.standard_normal((codes, dim)), rng.standard_normal((frames, dim))
    count = rng.uniform(0, 2 / codes, codes)
    weight, order = (rng.uniform(size=frames) < 0.7).astype(np.float32), rng.uniform(size=frames)
    module = codebook(vectors, count, vectors * count[:, None])
    return module, *(jnp.array(array, jnp.float32) for array in (x, weight, order))


@pytest.mark.parametrize("seed", range(5))
def test_the_update_is_a_moving_average_and_unused_codes_go_to_frames(seed):
    module, x, weight, order = drawn(seed)
    old, codes = module.averages, module.nearest(x)
    new, placed = jax.device_get(module.updated(x, codes, weight, order, DECAY, DEAD))
    old, x, codes = jax.device_get((old, x, codes))
    distances = np.square(x[:, None] - old.vectors).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(1))
    valid = np.flatnonzero(weight)
    queue, num_placed = sorted(valid, key=lambda frame: -order[frame]), 0
    for code in range(6):
        own = np.array([frame for frame in valid if codes[frame] == code], int)
        count = DECAY * old.count[code] + (1 - DECAY) * len(own) / len(valid)
        total = DECAY * old.total[code] + (1 - DECAY) * x[own].sum(0) / len(valid)
        vector = total / count
        if count * 6 < DEAD:
            vector, count = x[queue[num_placed]], 1 / 6
            total, num_placed = vector / 6, num_placed + 1
        np.testing.assert_allclose(new.vectors[code], vector, atol=1e-5)
        np.testing.assert_allclose(new.count[code], count, atol=1e-6)
        np.testing.assert_allclose(new.total[code], total, atol=1e-6)
    assert placed == num_placed


def test_the_first_update_places_every_code_at_frames():
    module = codebook(np.zeros((6, 3)), np.zeros(6), np.zeros((6, 3)))  # code 0 is the nearest to all
    _, x, weight, order = drawn(1)
    new, placed = jax.device_get(module.updated(x, module.nearest(x), weight, order, DECAY, DEAD))
    assert placed == 5
    np.testing.assert_allclose(new.vectors[0], x[weight > 0].mean(0), atol=1e-6)
    frames = [int(jnp.flatnonzero((x == vector).all(1))[0]) for vector in new.vectors[1:]]
    assert len(set(frames)) == 5
    assert weight[np.array(frames)].all()


def test_fewer_frames_than_unused_codes_leave_the_others_where_they_are():
    vectors = np.arange(18.0).reshape(6, 3)
    module = codebook(vectors, np.zeros(6), np.zeros((6, 3)))
    x, weight = [[50, 0, 0], [0, 50, 0], [0, 0, 50]], [1, 0, 1]
    x, weight, order = (jnp.array(array, jnp.float32) for array in (x, weight, [0.1, 0.9, 0.2]))
    new, placed = jax.device_get(module.updated(x, module.nearest(x), weight, order, DECAY, 0.9))
    assert placed == 2
    moved = np.flatnonzero((new.vectors != vectors).any(1))
    np.testing.assert_array_equal(new.vectors[moved], x[jnp.array([2, 0])])


def test_no_valid_frame_changes_nothing():
    module, x, weight, order = drawn(2)
    new, placed = module.updated(x, module.nearest(x), jnp.zeros_like(weight), order, DECAY, DEAD)
    assert placed == 0
    jax.tree.map(np.testing.assert_array_equal, new, module.averages)


def test_the_order_of_frames_and_padding_change_nothing():
    module, x, weight, order = drawn(3)
    new, _ = module.updated(x, module.nearest(x), weight, order, DECAY, DEAD)
    mix = np.random.default_rng(0).permutation(40)
    x, weight, order = x[mix], weight[mix], order[mix]
    x = jnp.concatenate([jnp.full((5, 3), jnp.nan), x])
    weight, order = (jnp.concatenate([jnp.zeros(5), each]) for each in (weight, order))
    other, _ = module.updated(x, module.nearest(x), weight, order, DECAY, DEAD)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), new, other)


def test_sgd_at_rate_1_sets_the_averages():
    module, x, weight, order = drawn(4)
    old = module.averages
    new, _ = module.updated(x, module.nearest(x), weight, order, DECAY, DEAD)
    value, gradient = jax.value_and_grad(lambda params: set_by_gradient(params, new))(old)
    assert value == 0
    updates, _ = optax.sgd(1.0).update(gradient, optax.sgd(1.0).init(old), old)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), optax.apply_updates(old, updates), new)
    assert isinstance(new, Averages)


def test_the_gradient_goes_straight_through():
    x, vectors = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -1.0]])
    value, gradients = jax.value_and_grad(lambda x, v: jnp.sum(straight_through(x, v) ** 2), (0, 1))(x, vectors)
    assert value == 10
    np.testing.assert_array_equal(gradients[0], 2 * vectors)
    np.testing.assert_array_equal(gradients[1], jnp.zeros_like(vectors))
