"""Every report that keeps its items is compared, read back from its file, and held to the other's data."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_curve

from jax_speechlm.evaluation import (
    answers,
    base,
    classification,
    comparison,
    few_shot,
    intent,
    language,
    masked_text,
    minimal_pairs,
    report,
    resampling,
    speakers,
    synthesis_report,
    translation,
    unit_language,
)
from jax_speechlm.inference.intent import Command

ROWS = 40


def rights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(ROWS) < (0.5 if seed == 0 else 0.9)


def utterances(seed: int):
    words = ["the cat sat on the mat", "a dog ran far away from home"]
    return [
        report.Utterance(
            id=str(row), reference=words[row % 2], hypothesis=words[row % 2] if right else "the cat ran far"
        )
        for row, right in enumerate(rights(seed))
    ]


def of_classes(seed: int):
    true = np.arange(ROWS) % 3
    return classification.score(true, np.where(rights(seed), true, (true + 1) % 3), ("a", "b", "c"))


def of_commands(seed: int):
    actual = [Command("order", {"size": "big"}, 1.0)] * ROWS
    predicted = [
        Command("order" if right else None, {"size": "big" if right else "small"}, 1.0) for right in rights(seed)
    ]
    return intent.CommandReport(scores=(intent.score_commands(actual, predicted),))


def predictions(seed: int):
    nats = [7.0 if right else 12.0 for right in rights(seed)]
    return [
        language.Prediction(nats=each, units=5, bytes=10 + row, words=2, documents=1) for row, each in enumerate(nats)
    ]


def of_texts(seed: int):
    parts = predictions(seed)
    items = tuple(each.item(str(row)) for row, each in enumerate(parts))
    total = language.Prediction.total(parts)
    return language.LanguageReport(context=8, stride=4, total=total, sources={}, ngrams={}, items=items)


def of_units(seed: int):
    parts = [
        unit_language.SpokenPrediction(nats=9.0 if right else 20.0, units=4, seconds=1 + row, utterances=1)
        for row, right in enumerate(rights(seed))
    ]
    about = {"checkpoint": "", "sets": (), "text_sets": (), "split": "", "units": "", "context": 8, "stride": 4}
    items = tuple(each.item(str(row), "") for row, each in enumerate(parts))
    total = unit_language.SpokenPrediction.total(parts)
    return unit_language.UnitReport(**about, speech=total, speakers={}, text=None, spoken_items=items)


def of_masks(seed: int):
    items = tuple(
        base.Item(id=str(row), sums={"accuracy": (right, 1), "loss": (2 - right, 1)})
        for row, right in enumerate(rights(seed).tolist())
    )
    values = {"accuracy": 0.5, "loss": 1.5, "unigram_accuracy": 0.1, "unigram_loss": 3.0}
    return masked_text.MaskedReport(tokens=ROWS, **values, items=items)


def of_pairs(seed: int):
    pairs = [minimal_pairs.Pair(f"good {row}", f"bad {row}", "all") for row in range(ROWS)]
    scores = iter([x for right in rights(seed) for x in ((1.0, 0.0) if right else (0.0, 1.0))])
    return minimal_pairs.compare(pairs, lambda texts: [next(scores) for _ in texts], "")


def of_shots(seed: int):
    items = tuple(
        base.Item(id=str(row), sums={"0 shots": (right, 1)}) for row, right in enumerate(rights(seed).tolist())
    )
    shots = few_shot.Shots(shots=0, accuracy=0.5, interval=(0.4, 0.6), cut=0)
    about = {"checkpoint": "", "questions": ROWS, "chance": 0.5, "majority": 0.5, "seed": 0}
    return few_shot.FewShotReport(**about, results=(shots,), items=items)


def of_answers(seed: int):
    questions = [answers.Question(f"q{row}", None, (f"a{row}",)) for row in range(ROWS)]
    replies = {f"q{row}": f"a{row}" if right else None for row, right in enumerate(rights(seed))}
    return answers.evaluate_answers(questions, replies.get, None, "test")


def of_speech(seed: int):
    judged = tuple(
        synthesis_report.JudgedUtterance(
            id=str(row), reference="a b", transcripts={}, sums={"run": {"WER": (0.0 if right else 2.0, 2.0)}}
        )
        for row, right in enumerate(rights(seed))
    )
    about = {"title": "", "normalizer": "basic", "missing": {}, "failed": {}, "packages": {}, "resamples": 9, "seed": 0}
    column = synthesis_report.Column(name="WER", group="errors", unit="%")
    measured = synthesis_report.Measurement(value=0.5, utterances=ROWS)
    rows = (synthesis_report.JudgedRow(name="run", measures={"WER": measured}),)
    return synthesis_report.SynthesisReport(**about, columns=(column,), rows=rows, utterances=judged)


KINDS = {
    "WER": lambda seed: report.evaluate(utterances(seed)),
    "BLEU, chrF": lambda seed: translation.evaluate(utterances(seed)),
    "accuracy, F1": of_classes,
    "intent, clean, slot F1, clean, all right, clean": of_commands,
    "bits/byte": of_texts,
    "bits/second": of_units,
    "accuracy, loss": of_masks,
    "accuracy": of_pairs,
    "0 shots": of_shots,
    "F1, typed": of_answers,
    "speech": of_speech,
}


@pytest.mark.parametrize("kind", KINDS)
def test_reports_are_compared_in_all_their_measures(kind, tmp_path):
    read = []
    for seed in (0, 1):
        KINDS[kind](seed).save(tmp_path / str(seed))
        read.append(comparison.read_report(tmp_path / str(seed) / "report.json"))
        assert read[-1] == KINDS[kind](seed)  # deterministic, and read back as its own kind
    found = comparison.compare(*read, resamples=1_000)
    assert ", ".join(each.metric for each in found) == (kind if kind != "speech" else "WER")
    for each in found:
        assert each.second - each.first == pytest.approx(each.difference)
        assert each.interval[0] <= each.difference <= each.interval[1]
        assert not each.interval[0] <= 0 <= each.interval[1]  # the second is much better
        assert each.p_value <= each.corrected <= len(found) * each.p_value
        assert f"{each.metric} " in str(each)
    for each in comparison.compare(read[0], read[0], resamples=100):
        assert (each.difference, each.p_value, each.corrected) == (0, 1, 1)


def test_what_does_not_belong_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a ClassificationReport and a LanguageReport"):
        comparison.compare(of_classes(0), of_texts(0))
    other = classification.score(np.arange(ROWS) % 2, np.arange(ROWS) % 2, ("a", "b", "c"))
    with pytest.raises(ValueError, match="references of utterance '2' differ"):
        comparison.compare(of_classes(0), other)
    with pytest.raises(ValueError, match="have no measure in common whose items they keep"):
        comparison.compare(of_classes(0), of_classes(0).replace(items=()))
    for text, message in (("{", "not a report"), ("[1]", "not a report"), ('{"a": 1}', "items can be compared")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            comparison.read_report(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="does not exist"):
        comparison.read_report(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text(json.dumps(json.loads(of_pairs(0).model_dump_json()) | {"total": 1}))
    with pytest.raises(ValueError, match="not a report of this version"):
        comparison.read_report(tmp_path / "bad.json")


def test_intervals_of_classes_are_those_of_resampled_rows():
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=90)
    predicted = np.where(rng.random(90) < 0.7, true, rng.integers(3, size=90))
    found, drawn = classification.score(true, predicted, ("a", "b", "c")), []
    for _ in range(500):
        rows = rng.integers(90, size=90)
        drawn.append(f1_score(true[rows], predicted[rows], average="macro"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    np.testing.assert_allclose(found.f1_interval, (low, high), rtol=0, atol=0.2 * (high - low))
    for scored in (found, *found.classes.values()):
        for name in ("precision", "recall", "f1"):
            bounds = getattr(scored, f"{name}_interval")
            assert bounds[0] <= getattr(scored, name) <= bounds[1]
    frames = classification.score(true, predicted, ("a", "b", "c"), np.arange(90) // 3)
    assert frames.f1 == found.f1
    assert classification.score(true, predicted, ("a", "b", "c"), np.arange(90) // 30).f1_interval is None


def test_intervals_of_the_equal_error_rate_are_those_of_weighted_trials():
    rng = np.random.default_rng(0)
    speaker, unit = np.arange(36) % 6, np.arange(36)
    vectors = np.eye(6)[speaker] + 0.8 * rng.normal(size=(36, 6))
    one, other = np.triu_indices(36, 1)
    pairs = speakers.Pairs(one, other, speaker[one] == speaker[other])
    cosine = np.round((vectors[one] * vectors[other]).sum(1), 1)  # with ties
    rates, costs = [], []
    for drawn in np.concatenate(list(resampling.draws(36, 1_000, 0))):
        weights = drawn[one] * drawn[other]
        alarms, hits, _ = roc_curve(pairs.is_target, cosine, sample_weight=weights, drop_intermediate=False)
        rates.append(crossing_of(alarms, 1 - hits))
        costs.append((0.01 * (1 - hits) + 0.99 * alarms).min() / 0.01)
    found = speakers.intervals(cosine, pairs, unit)
    np.testing.assert_allclose(found[0], np.percentile(rates, [2.5, 97.5]), atol=1e-6)
    np.testing.assert_allclose(found[1], np.percentile(costs, [2.5, 97.5]), atol=1e-6)
    value = speakers.score(cosine, pairs.is_target)
    assert found[0][0] <= value.equal_error_rate <= found[0][1]
    assert speakers.intervals(cosine, pairs, speaker) is None  # six speakers are few


def crossing_of(alarms: np.ndarray, misses: np.ndarray) -> float:
    """The rate at which two lines between neighbouring points of the curve cross."""
    after = int(np.argmax(alarms >= misses))
    before = after - 1
    gaps = misses[before] - alarms[before], alarms[after] - misses[after]
    return float(np.interp(gaps[0] / sum(gaps), [0, 1], [misses[before], misses[after]]))
