import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.segments import Segments
from jax_speechlm.interop.hf import whisper
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.attention_decoder import init_cache
from jax_speechlm.models.encoder_decoder import SIZES, EncoderDecoder
from jax_speechlm.models.whisper import sinusoids
from jax_speechlm.nn import functional

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "whisper.npz")
WEIGHTS = {name.removeprefix("weights/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("weights/")}
CONFIG = whisper.config_from_hugging_face(json.loads(str(GOLDEN["config"])))
PARAMS = read(whisper.sources(WEIGHTS, CONFIG))
GRAPHDEF = functional.declare(lambda rngs: EncoderDecoder(CONFIG, 24, rngs=rngs)).graphdef
FEATURES, TOKENS = jnp.asarray(GOLDEN["features_8"]), jnp.asarray(GOLDEN["tokens"])
ROWS, NUM_TOKENS = TOKENS.shape
LENGTH = jnp.full(ROWS, FEATURES.shape[1], jnp.int32)


def bound(params=PARAMS):
    return functional.bind(GRAPHDEF, params)


@jax.jit
def encoded(params, features, length):
    return bound(params).encoder(features, length)[0]


@jax.jit
def logits(params, features, length, tokens):
    model = bound(params)
    source = model.read_speech(features, length)
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.decoder(tokens, jnp.ones_like(tokens), position, source)
    return hidden, model.decoder.logits(hidden)


def test_hidden_states_and_logits_are_those_of_hugging_face():
    np.testing.assert_allclose(encoded(PARAMS, FEATURES, LENGTH), GOLDEN["encoded"], atol=1e-4)
    hidden, computed = logits(PARAMS, FEATURES, LENGTH, TOKENS)
    np.testing.assert_allclose(hidden, GOLDEN["hidden"], atol=1e-4)
    np.testing.assert_allclose(computed, GOLDEN["logits"], atol=1e-4)


def test_both_directions_of_the_weights_are_inverses():
    arrays = whisper.to_hugging_face(PARAMS, CONFIG)
    assert arrays.keys() == WEIGHTS.keys()
    assert all(np.array_equal(arrays[name], WEIGHTS[name]) for name in arrays)
    settings = whisper.config_to_hugging_face(CONFIG, 24)
    assert whisper.config_from_hugging_face(settings) == CONFIG
    original = json.loads(str(GOLDEN["config"])) | {"architectures": [whisper.ARCHITECTURE]}
    assert {name: original[name] for name in settings} == settings


def test_a_vocabulary_map_of_its_own_is_refused():
    tied = WEIGHTS | {whisper.TIED: WEIGHTS["model.decoder.embed_tokens.weight"]}
    assert read(whisper.sources(tied, CONFIG)).keys() == PARAMS.keys()
    with pytest.raises(ValueError, match=r"proj_out.weight differs"):
        whisper.sources(WEIGHTS | {whisper.TIED: tied[whisper.TIED] + 1}, CONFIG)


@pytest.mark.parametrize("chunks", [(1,) * 5, (3, 1, 1), (5,)])
def test_decoding_with_a_cache_gives_the_hidden_states_of_one_pass(chunks):
    expected, _ = logits(PARAMS, FEATURES, LENGTH, TOKENS[:, :5])

    @jax.jit
    def decode(params):
        model = bound(params)
        source, cache = model.read_speech(FEATURES, LENGTH), init_cache(CONFIG.decoder, ROWS, 7)
        parts, start = [], 0
        for size in chunks:
            position = jnp.broadcast_to(start + jnp.arange(size), (ROWS, size))
            hidden, cache = model.decoder.decode(TOKENS[:, start : start + size], position, cache, source)
            parts.append(hidden)
            start += size
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(decode(PARAMS), expected, atol=1e-5)


def test_packed_rows_give_each_utterance_what_it_gets_alone():
    lengths, counts = [34, 61], [4, 7]
    packed = np.full((1, 100, 8), 1e3, np.float32)
    packed[0, :34], packed[0, 36:97] = FEATURES[0, :34], FEATURES[1, :61]
    tokens = jnp.concatenate([TOKENS[0, :4], TOKENS[1, :7], jnp.array([3])])[None]
    segment, position = jnp.array([[1] * 4 + [2] * 7 + [0]]), jnp.array([[*range(4), *range(7), 0]])

    @jax.jit
    def run(params):
        model = bound(params)
        source = model.read_speech(jnp.asarray(packed), Segments(jnp.array([[0, 36]]), jnp.array([lengths])))
        return model.decoder(tokens, segment, position, source)

    together = run(PARAMS)[0]
    for row, (start, count) in enumerate(zip((0, 4), counts, strict=True)):
        features = FEATURES[row : row + 1, : lengths[row]]
        alone, _ = logits(PARAMS, features, np.array([lengths[row]]), TOKENS[row : row + 1, :count])
        np.testing.assert_allclose(together[start : start + count], alone[0], atol=1e-5)
    assert not together[-1].any()


def test_a_longer_row_than_positions_is_refused_with_the_setting():
    with pytest.raises(ValueError, match=r"52 frames is longer than the 50 positions.*data.max_seconds"):
        encoded(PARAMS, np.zeros((1, 104, 8), np.float32), np.array([104]))


def test_sizes_are_those_published():
    counts = {}
    for name in ("tiny", "base", "large-v3-turbo"):
        shapes = functional.declare(lambda rngs, name=name: EncoderDecoder(SIZES[name], 51_866, rngs=rngs)).shapes
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # Of openai/whisper-tiny and -base with one more id, and of large-v3-turbo, as transformers counts them.
    assert counts == {"tiny": 37_760_640 + 384, "base": 72_593_920 + 512, "large-v3-turbo": 808_878_080}


def test_sinusoids_are_those_of_the_paper():
    whole = sinusoids(1500, 384)
    assert whole.shape == (1500, 384)
    np.testing.assert_allclose(whole[7, [0, 191, 192]], [np.sin(7), np.sin(7e-4), np.cos(7)], atol=1e-12)
