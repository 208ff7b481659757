"""Unit language modelling: every token counts in its kind, and text counts as it does to a model of text."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.unit_lm import UnitLM, health_check
from tests.objectives.text import MODEL, TOKENIZER, documents, pack
from tests.objectives.text import VOCABULARY as TEXT_VOCABULARY

UNITS = 11
VOCABULARY = Vocabulary.of(TOKENIZER, num_units=UNITS)
SPEECH, TEXT, UNIT = VOCABULARY.speech, VOCABULARY.text, VOCABULARY.first_unit
TIME, FRAME = 24, 320
SPOKEN = [[VOCABULARY.boundary, SPEECH, *(UNIT + u for u in units), VOCABULARY.boundary] for units in ([3, 9, 3], [0])]
MIXED = [VOCABULARY.boundary, 4, 5, SPEECH, UNIT + 3, UNIT + 10, TEXT, 6, 2, SPEECH, UNIT, VOCABULARY.boundary]
WRITTEN = documents(0, [9, 4])
ROWS = [[SPOKEN[0], WRITTEN[0]], [MIXED, SPOKEN[1]], [], [WRITTEN[1]]]


def with_samples(batch):
    """Unit u lasts u + 1 frames."""
    unit = batch["tokens"] - UNIT
    return batch | {"samples": np.where(unit >= 0, (unit + 1) * FRAME, 0).astype(np.int32)}


@functools.cache
def objective(z_weight: float = 1e-3):
    built = UnitLM(num_units=UNITS, z_weight=z_weight).build(MODEL, FrontEnd(), TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    graphdef = functional.declare(built.make).graphdef

    def logits(params, tokens):
        model = functional.bind(graphdef, params).transformer
        place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return model.logits(model(tokens, place * 0 + 1, place))

    return built, params, jax.jit(built.loss), jax.jit(logits)


def document_scores(ids: list[int], known: int = VOCABULARY.size) -> tuple[np.ndarray, np.ndarray]:
    """(nll, log_z^2) of every token behind the first, among ids below `known`: alone in its row, in numpy, float64."""
    _, params, _, logits = objective()
    row = np.zeros((1, TIME), np.int32)
    row[0, : len(ids)] = ids
    scores = np.asarray(logits(params, row)[0, : len(ids) - 1], np.float64)[:, :known]
    log_z = np.log(np.exp(scores).sum(-1))
    return log_z - scores[np.arange(len(ids) - 1), ids[1:]], log_z**2


def test_ids_of_a_model_of_text_stay_and_the_rest_follows():
    assert (VOCABULARY.boundary, VOCABULARY.mask) == (TEXT_VOCABULARY.boundary, TEXT_VOCABULARY.mask)
    assert (TOKENIZER.vocab_size + 2, TOKENIZER.vocab_size + 3, TOKENIZER.vocab_size + 4) == (SPEECH, TEXT, UNIT)
    assert VOCABULARY.size % 8 == 0
    assert 0 <= VOCABULARY.size - (UNIT + UNITS) < 8
    assert Vocabulary(100).size == 104  # as it was before there were units
    assert Vocabulary(100, 16).size == 120
    behind_sentinels = Vocabulary(100, 16, 5)
    assert behind_sentinels.speech == behind_sentinels.sentinel + 16


def test_what_may_follow():
    def of(*args):
        return np.flatnonzero(VOCABULARY.may_follow(*args)).tolist()

    written, units = list(range(1, VOCABULARY.boundary + 1)), list(range(UNIT, UNIT + UNITS))
    assert of("text") == written
    assert of("units") == [VOCABULARY.boundary, *units]
    assert of() == [*written, SPEECH, TEXT, *units]
    assert np.flatnonzero(TEXT_VOCABULARY.may_follow()).tolist() == written


def test_ids_that_two_vocabularies_share():
    here, there = VOCABULARY.shared_with(Vocabulary(TOKENIZER.vocab_size, 3))
    assert here.tolist() == there.tolist() == list(range(VOCABULARY.sentinel))
    ours, theirs = Vocabulary(10, 4, 6), Vocabulary(10, 2, 6)
    here, there = ours.shared_with(theirs)
    assert here.tolist() == [*range(14), *range(16, 24)]
    assert there.tolist() == [*range(14), *range(14, 22)]


def test_every_token_is_scored_and_counts_in_its_kind():
    batch = with_samples(pack(ROWS, TIME))
    loss, metrics = objective()[2](objective()[1], batch, None)
    sums = dict.fromkeys(("unit", "text", "other"), 0.0)
    counts, log_z, seconds = dict.fromkeys(sums, 0), 0.0, 0.0
    for ids in (*SPOKEN, MIXED, *WRITTEN):
        nll, squares = document_scores(ids)
        log_z += squares.sum()
        for before, target, nats in zip(ids, ids[1:], nll, strict=False):
            kind = "text"
            if target >= UNIT:
                kind, seconds = "unit", seconds + (target - UNIT + 1) * FRAME / 16_000
            elif target in (SPEECH, TEXT) or (target == VOCABULARY.boundary and before >= UNIT):
                kind = "other"
            sums[kind] += nats
            counts[kind] += 1
    assert counts["other"] == 2 + 3 + 3  # speech begins, changes of the mixed one, and ends behind speech
    total, count = sum(sums.values()), sum(counts.values())
    np.testing.assert_allclose(metrics["unit_loss"], (sums["unit"], counts["unit"]), rtol=1e-5)
    np.testing.assert_allclose(metrics["text_loss"], (sums["text"], counts["text"]), rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], (total, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (total + 1e-3 * log_z, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_second"], (sums["unit"] / math.log(2), seconds), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["loss"][0] / count, rtol=1e-6)
    share = np.bincount([3, 9, 3, 0, 3, 10, 0]) / 7
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    np.testing.assert_allclose(metrics["unit_entropy"], (7 * entropy, 7), rtol=1e-5)


def test_text_counts_as_it_does_to_the_model_of_text_that_it_began_as():
    """The same parameters with the table cut behind the text's ids: what units take of the probability is left out."""
    _, params, _, _ = objective()
    text = CausalLM(z_weight=0).build(MODEL, FrontEnd(), TOKENIZER)
    cut = params["transformer"]["embedding"][: TEXT_VOCABULARY.size]
    # Rows of the smaller table that mean nothing there are units here.
    cut = cut.at[TEXT_VOCABULARY.sentinel :].set(0)
    alone = {"transformer": params["transformer"] | {"embedding": cut}}
    batch = with_samples(pack([[ids] for ids in WRITTEN], TIME))
    _, metrics = jax.jit(text.loss)(alone, batch, None)
    known = VOCABULARY.sentinel
    meaningless = TEXT_VOCABULARY.size - known  # rows of zeros: logits of 0
    expected = 0.0
    for ids in WRITTEN:
        nll, squares = document_scores(ids, known)
        log_z = np.sqrt(squares)
        assert (log_z > 0).all()
        expected += (nll + np.log(np.exp(log_z) + meaningless) - log_z).sum()
    np.testing.assert_allclose(metrics["loss"], (expected, sum(len(ids) - 1 for ids in WRITTEN)), rtol=1e-5)


def test_the_alarm_tells_collapsed_units_and_a_model_that_learns_nothing():
    one_unit = [[VOCABULARY.boundary, SPEECH, *[UNIT + 3] * 12, UNIT + 4]]
    metrics = objective()[2](objective()[1], with_samples(pack([one_unit], TIME)), None)[1]
    means = {name: float(total / weight) for name, (total, weight) in metrics.items() if weight}
    assert "units have collapsed" in health_check(means, after_warmup=False)
    fine = {"unit_entropy": 4.0, "unit_loss": 3.0}
    assert health_check(fine, after_warmup=True) is None
    assert health_check(fine | {"unit_loss": 5.0}, after_warmup=False) is None
    assert "worse (5.00 nats) than their frequencies do (4.00)" in health_check(
        fine | {"unit_loss": 5.0}, after_warmup=True
    )
    assert health_check({"unit_entropy": 0.0, "unit_loss": 0.0}, after_warmup=True) is None  # no speech at all


@pytest.mark.parametrize(
    ("model", "tokenizer", "message"),
    [(MODEL, None, "train-tokenizer"), (MODEL.replace(causal=False), TOKENIZER, "--model.causal True")],
)
def test_settings_that_cannot_work_are_refused(model, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        UnitLM(num_units=3).build(model, FrontEnd(), tokenizer)
