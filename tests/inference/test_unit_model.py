"""A trained unit model: speech counts as its units, continuations keep to their modality, other k-means are refused."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.storage.index import read_index
from jax_speechlm.decoding.lm.generate import GREEDY, Beam, Sampling
from jax_speechlm.evaluation.spoken_pairs import score_recordings
from jax_speechlm.evaluation.unit_language import SpokenPrediction, predict_speech
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.units import UnitModel
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.training.checkpoints import CheckpointError
from tests.data_pipelines.spoken_sets import write_spoken_set
from tests.data_pipelines.unit_sets import label, make_units
from tests.objectives.text import MODEL, TOKENIZER

CONTEXT, UNITS = 32, 9
SAID = [np.array([3, 1, 4, 1, 5]), np.array([8]), np.array([2, 7, 1, 8, 2, 8])]


@functools.cache
def model(fingerprint: str = "") -> UnitModel:
    built = UnitLM(num_units=UNITS).build(MODEL, None, TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    return UnitModel(LanguageModel(MODEL, TOKENIZER, params, CONTEXT, num_units=UNITS), "", fingerprint)


@functools.cache
def _forward():
    def log_probs(params, row):
        transformer = functional.bind(model().lm.graphdef, params).transformer
        place = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
        return jax.nn.log_softmax(transformer.logits(transformer(row, place * 0 + 1, place)))

    return jax.jit(log_probs)


def plain_nats(ids: list[int]) -> np.ndarray:
    """-log p of every token behind the first, one row that holds exactly this."""
    row = np.zeros((1, 40), np.int32)
    row[0, : len(ids)] = ids
    scores = np.asarray(_forward()(model().lm.params, row), np.float64)[0]
    return -scores[np.arange(len(ids) - 1), ids[1:]]


def ids_of(units: np.ndarray) -> list[int]:
    vocabulary = model().lm.vocabulary
    return [vocabulary.boundary, vocabulary.speech, *(vocabulary.first_unit + units).tolist(), vocabulary.boundary]


def test_speech_counts_as_its_units_alone():
    for units, nats in zip(SAID, model().unit_nats(SAID), strict=True):
        assert len(nats) == len(units)
        np.testing.assert_allclose(nats, plain_nats(ids_of(units))[1:-1], rtol=1e-5)


def test_a_recording_s_score_is_the_sum_or_the_mean():
    def encode(files):
        return [SAID[int(file.name)] for file in files]

    files = [Path(str(number)) for number in range(3)]
    sums = [-plain_nats(ids_of(units))[1:-1].sum() for units in SAID]
    np.testing.assert_allclose(score_recordings(model(), encode, files), sums, rtol=1e-5)
    means = [total / len(units) for total, units in zip(sums, SAID, strict=True)]
    np.testing.assert_allclose(score_recordings(model(), encode, files, per_unit=True), means, rtol=1e-5)


@pytest.mark.parametrize("method", [GREEDY, Sampling(temperature=3.0), Beam(size=3)])
@pytest.mark.parametrize("modality", [None, "text", "units"])
def test_a_continuation_keeps_to_its_modality_and_has_its_probability(method, modality):
    vocabulary, prompts = model().lm.vocabulary, [[], ["a cab"], [SAID[0]], ["a", SAID[1]]]
    found = model().generate(prompts, method, modality=modality, max_tokens=6)
    for parts, continuations in zip(prompts, found, strict=True):
        start = model().prompt(parts, modality)
        for each in continuations:
            kinds = {name for part in each.parts for name in part}
            assert kinds <= ({modality} if modality else {"text", "units"})
            assert all(part["text"] for part in each.parts if "text" in part)
            assert all(0 <= unit < UNITS for part in each.parts for unit in part.get("units", []))
            if modality is None:
                continue  # the tokens between text and speech are not in the parts
            ids = list(start)
            for part in each.parts:
                ids += (
                    TOKENIZER.encode(part["text"])
                    if "text" in part
                    else [vocabulary.first_unit + unit for unit in part["units"]]
                )
            ids += [vocabulary.boundary] * each.ended
            assert len(ids) - len(start) == each.num_tokens
            np.testing.assert_allclose(each.log_prob, -plain_nats(ids)[len(start) - 1 :].sum(), rtol=1e-4)


def test_prompts_change_between_text_and_speech():
    vocabulary = model().lm.vocabulary
    assert model().prompt([]) == [vocabulary.boundary]
    assert model().prompt([], "units") == [vocabulary.boundary, vocabulary.speech]
    text = TOKENIZER.encode("ab")
    assert model().prompt(["ab"], "text") == [vocabulary.boundary, *text]
    mixed = [vocabulary.boundary, *text, vocabulary.speech, vocabulary.first_unit + 8]
    assert model().prompt(["ab", SAID[1]]) == mixed
    assert model().prompt(["ab", SAID[1]], "text") == [*mixed, vocabulary.text]


def test_speech_is_measured_by_the_second(tmp_path):
    rows = [("", 3000 + 500 * row) for row in range(6)] + [("", 100)]
    index = read_index(write_spoken_set(tmp_path / "set", {"test": rows}), "test")
    units = make_units(tmp_path / "units", UNITS)
    codes = label(index, units)
    total = SpokenPrediction.total(predict_speech(model(), index, units.path))
    nats = sum(plain_nats(ids_of(_runs(each)))[1:-1].sum() for each in codes if len(each))
    seconds = sum(map(len, codes)) * units.frame_samples / 16_000
    assert total.nats == pytest.approx(nats, rel=1e-5)
    assert total.units == sum(len(_runs(each)) for each in codes)
    assert (total.utterances, total.without_units) == (6, 1)
    assert total.bits_per_second == pytest.approx(nats / math.log(2) / seconds, rel=1e-5)
    assert total.perplexity == pytest.approx(math.exp(nats / total.units), rel=1e-5)


def _runs(codes: np.ndarray) -> np.ndarray:
    return np.array([code for place, code in enumerate(codes) if place == 0 or codes[place - 1] != code], np.int64)


def test_perplexity_and_bits_a_second_rank_models_of_other_units_differently():
    """Half as many units, each harder to predict: worse by perplexity, better by the second."""
    fine = SpokenPrediction(nats=100 * 2.0, units=100, seconds=4.0, utterances=1)
    coarse = SpokenPrediction(nats=50 * 3.0, units=50, seconds=4.0, utterances=1)
    assert coarse.perplexity > fine.perplexity
    assert coarse.bits_per_second < fine.bits_per_second


def test_another_k_means_is_refused(tmp_path):
    units = make_units(tmp_path / "units", UNITS)
    assert model(units.fingerprint).check(units.path) == units.path
    with pytest.raises(CheckpointError, match=f"trained on the units other, and those of .* are {units.fingerprint}"):
        model("other").check(units.path)
