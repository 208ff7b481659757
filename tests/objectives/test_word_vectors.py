"""Skip-gram, CBOW and GloVe against gensim's word2vec, numpy, and what their draws promise."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from data_pipelines.tokenizers.words import WordTokenizer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.word_vectors import WordVectors, WordVectorsConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import split_row_keys
from jax_speechlm.objectives.word_vectors.cbow import CBOW, score_centres
from jax_speechlm.objectives.word_vectors.glove import GloVe
from jax_speechlm.objectives.word_vectors.negative_sampling import Blocks, Tables, draw_examples
from jax_speechlm.objectives.word_vectors.skip_gram import SkipGram, score_pairs
from tests.objectives.text import TOKENIZER, WORDS, documents, pack

GOLDEN = Path(__file__).parents[1] / "golden" / "word_vectors.npz"
MODEL = WordVectorsConfig(dim=8)
RATE, SUBSAMPLE = 0.005, 0.02  # of the golden script
BATCH = jax.tree.map(jnp.asarray, pack([documents(0, [9, 25]), documents(1, [1, 30]), [], documents(2, [36])], 40))
SCORES = {"skip_gram": score_pairs, "cbow": score_centres}


def golden(kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return {name[len(kind) + 1 :]: arrays[name] for name in arrays.files if name.startswith(kind)}


@functools.cache
def gradient(kind: str):
    """Returns the gradient of one example's loss: a word, or a context, and an output with its negatives."""
    graphdef = functional.declare(lambda rngs: WordVectors(MODEL, 12, rngs=rngs)).graphdef

    def loss(params, centre, context, negatives):
        outputs = jnp.concatenate([centre[None], negatives])
        is_drawn = jnp.arange(len(outputs)) == 0
        is_drawn |= outputs != centre
        blocks = Blocks(*(x[None, None] for x in (jnp.maximum(context, 0), (context >= 0)[:, None], outputs[None])),
                        is_drawn[None, None, None])  # fmt: skip
        losses, _, is_valid = SCORES[kind](functional.bind(graphdef, params), blocks)
        return jnp.sum(losses * is_valid)

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize("kind", ["skip_gram", "cbow"])
def test_sgd_on_sentences_equals_gensims(kind):
    known = golden(kind)
    for number in range(len(known["words"]) - 1):
        before = {"words": known["words"][number], "contexts": known["outputs"][number]}
        params, most = before, 0.0
        inside = known["sentences"] == number
        for example in zip(*(known[name][inside] for name in ("centres", "contexts", "negatives")), strict=True):
            slope = jax.device_get(gradient(kind)(params, *example))
            # word2vec adds the whole gradient of a context's mean to each of its words (Irsoy et al. 2021, "Corrected
            # CBOW performs as well as skip-gram").
            slope["words"] = slope["words"] * (example[1] >= 0).sum()
            params = {name: value - RATE * slope[name] for name, value in params.items()}
            # gensim reads the logistic function from a table with steps of 0.012, where it is off by up to 0.003, for
            # each output, and as often as a word stands in the context.
            repeats = np.bincount(example[1] + 1)[1:].max(initial=0)
            largest = max(np.abs(table).max() for table in before.values())
            most += RATE * 0.003 * (1 + known["negatives"].shape[1]) * repeats * largest
        after = {"words": known["words"][number + 1], "contexts": known["outputs"][number + 1]}
        for name, value in params.items():
            np.testing.assert_allclose(value, after[name], rtol=0, atol=most, err_msg=f"{name} {number}")
            assert not most or np.abs(value - before[name]).max() > 2 * most


def test_the_distributions_equal_gensims():
    known = golden("cbow")
    tables = Tables.of(known["count"], SUBSAMPLE, 0.75)
    np.testing.assert_array_equal(tables.cumulative, known["cumulative"])
    np.testing.assert_allclose(tables.keep[1:], known["sample_int"], rtol=0, atol=1)  # of 2^32
    assert tables.keep[0] == 0
    assert (Tables.of(known["count"], None, 0.75).keep[1:] == 2**32 - 1).all()


@pytest.mark.parametrize("config", [SkipGram(window=3, negatives=2, subsample=0.02), CBOW(window=3, subsample=None)])
def test_a_batchs_loss_is_the_sum_over_its_words_written_out(config):
    objective = config.build(MODEL, None, WORDS)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.7, leaf.shape).astype(np.float32),
        jax.device_get(functional.init(objective.make, jax.random.key(0))),
    )
    key = jax.random.key(5)
    _, metrics = jax.jit(objective.loss)(params, BATCH, key)

    tables = Tables.of(np.array(WORDS.counts), config.subsample, config.exponent)
    keys, _ = split_row_keys(key, BATCH)
    drawn = draw_examples(BATCH["tokens"], BATCH["segment"], keys, tables, config.window, config.negatives)
    examples = jax.device_get(drawn)
    total, count, right = 0.0, 0, 0
    for tokens, segment, radius, outputs, is_drawn in zip(*examples, strict=True):
        for place in np.flatnonzero(segment):
            near = range(max(0, place - radius[place]), min(len(tokens), place + radius[place] + 1))
            context = [tokens[n] for n in near if n != place and segment[n] == segment[place]]
            inputs = params["words"][context].astype(np.float64)
            inputs = inputs if config.kind == "skip_gram" else inputs.mean(axis=0)[None] if context else []
            negatives = outputs[place, 1:][is_drawn[place, 1:]]
            assert tokens[place] == outputs[place, 0]
            assert tokens[place] not in negatives
            for vector in inputs:
                logit = params["contexts"][tokens[place]].astype(np.float64) @ vector
                others = params["contexts"][negatives].astype(np.float64) @ vector
                total += np.logaddexp(0, -logit) + np.logaddexp(0, others).sum()
                right += logit > others.max(initial=-np.inf)
                count += 1
    np.testing.assert_allclose(metrics["loss"], (total, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (right, count), rtol=1e-6)


def test_draws_have_their_distributions():
    counts = np.array([4000, 900, 300, 80, 20, 5])
    tables, places = Tables.of(counts, 0.05, 0.75), 40_000
    tokens = 1 + np.arange(places, dtype=np.int32)[None] % 6
    segment = np.ones_like(tokens)
    draw = jax.jit(functools.partial(draw_examples, tables=tables, window=4, negatives=2))
    examples = jax.device_get(draw(tokens, segment, jax.random.split(jax.random.key(1), 1)))

    share = counts / counts.sum()
    expected = np.minimum(1, np.sqrt(0.05 / share) + 0.05 / share)
    kept = np.bincount(examples.tokens[0][examples.segment[0] > 0], minlength=7)[1:]
    sizes = np.bincount(tokens[0], minlength=7)[1:]
    assert (np.abs(kept - sizes * expected) <= 4 * np.sqrt(sizes * expected * (1 - expected)) + 1e-6).all()

    powers = counts**0.75 / (counts**0.75).sum()
    drawn = np.bincount(examples.outputs[0, :, 1:].ravel(), minlength=7)[1:]
    assert scipy.stats.chisquare(drawn, 2 * places * powers).pvalue > 1e-3
    assert scipy.stats.chisquare(np.bincount(examples.radius[0], minlength=5)[1:]).pvalue > 1e-3

    order = np.flatnonzero(examples.segment[0])  # kept words stand first, and in their order
    assert (order == np.arange(len(order))).all()
    frequent = examples.tokens[0][: len(order)]
    rare = np.flatnonzero(tokens[0] >= 4)  # all are kept
    assert (frequent[frequent >= 4] == tokens[0][rare]).all()


def test_boundaries_are_no_words():
    drawn = draw_examples(
        BATCH["tokens"], BATCH["segment"], split_row_keys(None, BATCH)[0], Tables.of(np.ones(22, int), None, 1.0), 2, 1
    )
    tokens, segment = np.asarray(drawn.tokens), np.asarray(drawn.segment)
    assert (np.bincount(segment[0])[1:] == [9, 25]).all()
    assert tokens[segment > 0].max() < TOKENIZER.vocab_size
    assert not segment[2].any()


def test_glove_equals_its_formula():
    objective = GloVe(most=3.0, exponent=0.5).build(MODEL, None, WORDS)
    params = jax.device_get(functional.init(objective.make, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = {name: leaf + rng.normal(0, 0.5, leaf.shape).astype(np.float32) for name, leaf in params.items()}
    counts = np.zeros((23, 23))
    counts[1:, 1:] = rng.exponential(3, (22, 22)) * (rng.random((22, 22)) < 0.4)
    word, context = np.nonzero(counts)
    batch = {"tokens": word, "context_tokens": context, "count": counts[word, context]}
    batch = {name: np.append(value, [3, 4])[None] for name, value in batch.items()}
    batch["count"] = batch["count"].astype(np.float32)
    batch |= {"segment": np.append(np.ones(len(word), int), [0, 0])[None], "weight": np.ones(1, np.float32)}
    (loss, _), slope = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(params, batch, None)

    exact = {name: leaf.astype(np.float64) for name, leaf in params.items()}
    error = exact["words"] @ exact["contexts"].T + exact["word_bias"][:, None] + exact["context_bias"]
    counts = np.pad(counts, (0, len(error) - len(counts)))  # boundary, mask and unused ids
    is_pair = counts > 0
    error = np.where(is_pair, error - np.log(np.where(is_pair, counts, 1)), 0)
    share = np.minimum(1, (counts / 3) ** 0.5)
    np.testing.assert_allclose(loss, (share * error**2).sum() / is_pair.sum(), rtol=1e-5)
    weighted = 2 * share * error / is_pair.sum()
    np.testing.assert_allclose(slope["words"], weighted @ exact["contexts"], atol=1e-6)
    np.testing.assert_allclose(slope["contexts"], weighted.T @ exact["words"], atol=1e-6)
    np.testing.assert_allclose(slope["word_bias"], weighted.sum(1), atol=1e-6)
    np.testing.assert_allclose(slope["context_bias"], weighted.sum(0), atol=1e-6)
    np.testing.assert_array_equal(GloVe().vectors(params), params["words"] + params["contexts"])


def test_tables_start_as_in_the_reference():
    sampled = functional.init(SkipGram().build(MODEL, None, WORDS).make, jax.random.key(0))
    assert not np.any(sampled["contexts"])
    assert 0.9 * 0.5 / 8 < np.abs(sampled["words"]).max() <= 0.5 / 8
    assert sampled.keys() == {"words", "contexts"}


@pytest.mark.parametrize("config", [SkipGram(), CBOW(), GloVe()])
def test_what_is_missing_is_named(config):
    with pytest.raises(ValueError, match="train-tokenizer --kind word"):
        config.build(MODEL, None, TOKENIZER)
    with pytest.raises(ValueError, match="set model to a WordVectorsConfig"):
        config.build(TransformerConfig(), None, WordTokenizer(("a",), (1,)))
