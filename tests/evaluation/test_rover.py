"""ROVER against enumeration on tiny cases, and what it promises of order, ties and confidences."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.report import EvaluationReport, Utterance, evaluate
from jax_speechlm.evaluation.rover import NOTHING, Hypothesis, combine, join, network

WORDS = st.lists(st.sampled_from("abc"), max_size=4)


def every_way(slots: int, words: int):
    """All ways to lay words into slots in order, as lists of (slot or None, word or None)."""
    if not slots and not words:
        yield []
    if slots and words:
        yield from ([*rest, (slots - 1, words - 1)] for rest in every_way(slots - 1, words - 1))
    if slots:
        yield from ([*rest, (slots - 1, None)] for rest in every_way(slots - 1, words))
    if words:
        yield from ([*rest, (None, words - 1)] for rest in every_way(slots, words - 1))


def disagreements(slots, words, laid: int, way) -> int:
    """Pairs (new hypothesis, one before it) that differ, over all slots of a way."""
    total = 0
    for slot, word in way:
        before = slots[slot] if slot is not None else (NOTHING,) * laid
        total += sum(entry != (NOTHING if word is None else words[word]) for entry in before)
    return total


def least(slots, words, laid: int) -> int:
    return min(disagreements(slots, words, laid, way) for way in every_way(len(slots), len(words)))


def without(slots, gone: int):
    """The network before its hypothesis number `gone` was laid: slots that only it has a word in go too."""
    kept = [tuple(entry for each, entry in enumerate(slot) if each != gone) for slot in slots]
    return [slot for slot in kept if any(slot)]


@settings(max_examples=150)
@given(hypotheses=st.lists(WORDS, min_size=1, max_size=3))
def test_every_hypothesis_is_in_the_network_whole_and_in_order(hypotheses):
    slots = network(hypotheses)
    assert all(any(slot) for slot in slots)
    for each, words in enumerate(hypotheses):
        assert [slot[each] for slot in slots if slot[each] != NOTHING] == words


@settings(max_examples=60)
@given(one=WORDS, other=WORDS)
def test_two_are_laid_at_their_edit_distance(one, other):
    found = sum(slot[0] != slot[1] for slot in network([one, other]))
    assert found == least([(word,) for word in one], other, 1)


@settings(max_examples=60)
@given(hypotheses=st.lists(WORDS, min_size=3, max_size=3))
def test_the_last_is_laid_with_the_fewest_disagreements(hypotheses):
    """By enumeration of every way to lay it into the network of the others."""

    def distance(one, other):
        return least([(word,) for word in one], other, 1)

    order = sorted(range(3), key=lambda i: (sum(distance(hypotheses[i], each) for each in hypotheses), hypotheses[i]))
    slots = network(hypotheses)
    base = without(slots, order[-1])
    words = hypotheses[order[-1]]
    found = sum(entry != slot[order[-1]] for slot in slots for each, entry in enumerate(slot) if each != order[-1])
    assert found == least(base, words, 2)


@settings(max_examples=80)
@given(hypotheses=st.lists(WORDS, min_size=1, max_size=4), seed=st.integers(0, 9))
def test_the_network_does_not_depend_on_the_order(hypotheses, seed):
    order = np.random.default_rng(seed).permutation(len(hypotheses))
    moved = network([hypotheses[each] for each in order])
    expected = [tuple(slot[each] for each in order) for slot in network(hypotheses)]
    assert moved == expected


@settings(max_examples=80)
@given(words=WORDS, others=st.lists(WORDS, max_size=1))
def test_a_majority_that_agrees_wins_whatever_the_others_say(words, others):
    assert combine([*others, words, words]) == words
    assert combine([words]) == words


def test_each_may_be_wrong_where_the_others_are_right():
    heard = ["the cat sat down", "a cat sat dawn", "the cat set on down"]
    assert combine([each.split() for each in heard]) == ["the", "cat", "sat", "down"]


def test_ties_go_to_the_one_named_first():
    for order in itertools.permutations(["a b", "a c", "a d"]):
        assert combine([each.split() for each in order]) == order[0].split()
    assert combine([["a"], ["a", "b"]]) == ["a"]
    assert combine([["a", "b"], ["a"]]) == ["a", "b"]


def test_confidence_outvotes_number_by_its_weight():
    heard, sure = [["cat"], ["cat"], ["cut"]], [[0.2], [0.4], [0.9]]
    # cat: alpha * 2/3 + (1 - alpha) * 0.3; cut: alpha * 1/3 + (1 - alpha) * 0.9. Equal at alpha = 0.6 / (0.6 + 1/3).
    threshold = 0.6 / (0.6 + 1 / 3)
    assert combine(heard, sure, alpha=threshold - 0.01) == ["cut"]
    assert combine(heard, sure, alpha=threshold + 0.01) == ["cat"]
    assert combine(heard, sure) == ["cat"]
    one_adds = [["a"], ["a", "b"], ["a"]], [[0.9], [0.9, 0.95], [0.9]]
    assert combine(*one_adds, alpha=0.0, null_confidence=0.94) == ["a", "b"]
    assert combine(*one_adds, alpha=0.0, null_confidence=0.96) == ["a"]


@settings(max_examples=60)
@given(hypotheses=st.lists(WORDS, min_size=1, max_size=4), seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 0.5]))
def test_votes_are_counted_as_the_formula_says(hypotheses, seed, alpha):
    """Slot by slot from the network, with the best of all entries by the formula of Fiscus 1997, equation 1."""
    rng = np.random.default_rng(seed)
    sure = [rng.uniform(size=len(words)).tolist() for words in hypotheses]
    rest, expected = [list(each) for each in sure], []
    for slot in network(hypotheses):
        own = [0.5 if word == NOTHING else rest[each].pop(0) for each, word in enumerate(slot)]
        sure_of = {word: [own[each] for each, other in enumerate(slot) if other == word] for word in slot}
        score = {word: alpha * len(own) / len(slot) + (1 - alpha) * np.mean(own) for word, own in sure_of.items()}
        expected.append(max(slot, key=lambda word: score[word]))
    found = combine(hypotheses, sure, alpha=alpha, null_confidence=0.5)
    assert found == [word for word in expected if word != NOTHING]


SAID = {"u1": "the cat sat down", "u2": "hello there", "u3": ""}
HEARD = (
    {"u1": "The cat sat, dawn", "u2": "hollow there", "u3": ""},
    {"u1": "a cat sat down", "u2": "hello there", "u3": "uh"},
    {"u1": "the cat set down", "u2": "hello their", "u3": ""},
)


@pytest.fixture
def systems(tmp_path):
    paths = []
    for number, heard in enumerate(HEARD):
        said = [Utterance(id=id, reference=SAID[id], hypothesis=heard[id], speaker="s", duration=1.0) for id in SAID]
        evaluate(said[::-1] if number == 1 else said, resamples=50).save(tmp_path / str(number))
        paths.append(str(tmp_path / str(number) / "report.json"))
    return paths


def test_the_command_writes_a_report_that_compare_takes(systems, tmp_path, capsys):
    out = tmp_path / "rover"
    assert cli.main(["rover", *systems, f"--out={out}"]) == 0
    report = EvaluationReport.load(out / "report.json")
    assert {each.id: each.hypothesis for each in report.utterances} == SAID
    assert report.wer.rate == 0
    assert report.wer.interval is None  # of three utterances
    assert report.speakers["s"].utterances == 3
    assert report.decoder == f"ROVER of {', '.join(systems)}, by frequency"
    assert cli.main(["compare", systems[0], str(out / "report.json")]) == 0
    assert "WER 33.33 % -> 0.00 %" in capsys.readouterr().out


def test_hypotheses_with_confidences_come_as_lines(systems, tmp_path, capsys):
    file, out = tmp_path / "sure.jsonl", tmp_path / "rover"
    lines = [{"id": id, "reference": SAID[id], "hypothesis": "so be it", "confidences": [0.9, 0.8, 1.0]} for id in SAID]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert cli.main(["rover", str(file), str(file), f"--out={out}", "--alpha=0.3"]) == 0
    report = EvaluationReport.load(out / "report.json")
    assert {each.hypothesis for each in report.utterances} == {"so be it"}
    assert report.decoder.endswith("by frequency (0.3) and confidence, 0.7 for no word")
    assert cli.main(["rover", str(file), systems[0], f"--out={out}", "--alpha=0.3"]) == USER_ERROR
    assert "utterance 'u1' has none confidences" in capsys.readouterr().err


def test_what_cannot_be_joined_is_refused(systems, tmp_path):
    system = [Hypothesis(id=id, reference=SAID[id], hypothesis=SAID[id]) for id in SAID]
    with pytest.raises(ValueError, match="needs two systems"):
        join([system], "basic")
    with pytest.raises(ValueError, match="such as 'u3'"):
        join([system, system[:-1]], "basic")
    other = [each.replace(reference="x") for each in system]
    with pytest.raises(ValueError, match="references of utterance 'u1' differ"):
        join([system, other], "basic")


def test_scripts_without_spaces_are_voted_on_by_character():
    heard = [["今日は天気"], ["今月は天気"], ["今日は大気"]]
    systems = [
        [Hypothesis(id=str(row), reference="今日は天気", hypothesis=text) for row, text in enumerate(each)]
        for each in heard
    ]
    assert [each.hypothesis for each in join(systems, "basic")] == ["今日は天気"]
