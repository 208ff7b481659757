"""Minimal pairs: reading both formats, and counting who wins."""

import json

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.minimal_pairs import Pair, compare, read_pairs

OWN = [
    {"sentence_good": "The keys are here.", "sentence_bad": "The keys is here.", "UID": "agreement"},
    {"sentence_good": "She sees herself.", "sentence_bad": "She sees himself.", "UID": "anaphora"},
    {"sentence_good": "Who did you see?", "sentence_bad": "Who did you see him?", "UID": "gap"},
    {"sentence_good": "A dog barks.", "sentence_bad": "A dog bark.", "UID": "agreement"},
]
GOLD = """id,filename,voice,type,subtype,correct,transcription
1,a,A,agreement,x,1,the keys are here
1,b,A,agreement,x,0,the keys is here
1,c,B,agreement,x,1,the keys are here
1,d,B,agreement,x,0,the keys is here
2,e,A,gap,y,0,who did you see him
2,f,A,gap,y,1,who did you see
1,g,A,gap,z,1,who left
1,h,A,gap,z,0,who leave
"""


@pytest.fixture
def files(tmp_path):
    pairs = tmp_path / "own.jsonl"
    pairs.write_text("\n".join(json.dumps(row) for row in OWN) + "\n\n")
    gold = tmp_path / "gold.csv"
    gold.write_text(GOLD)
    return pairs, gold


def test_reads_pairs_of_blimp_and_of_sblimp(files):
    pairs, gold = files
    assert read_pairs([pairs]) == [Pair(row["sentence_good"], row["sentence_bad"], row["UID"]) for row in OWN]
    assert read_pairs([gold]) == [
        Pair("the keys are here", "the keys is here", "agreement"),
        Pair("who did you see", "who did you see him", "gap"),
        Pair("who left", "who leave", "gap"),  # ids begin anew in each subtype
    ]


def test_the_likelier_sentence_wins_and_ties_count_half(files):
    scores = {"The keys are here.": -1.0, "She sees himself.": -1.0, "A dog barks.": -3.0, "A dog bark.": -3.0}
    report = compare(read_pairs(files[:1]), lambda texts: [scores.get(text, -2.0) for text in texts], "run")
    assert report.total.accuracy == (1 + 0 + 0.5 + 0.5) / 4
    assert {name: each.accuracy for name, each in report.groups.items()} == {
        "agreement": 0.75,
        "anaphora": 0.0,
        "gap": 0.5,
    }
    assert report.groups["agreement"].pairs == 2


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        wins = rng.random(60) < 0.8
        pairs = [Pair("good", "bad", "all")] * 60
        scores = iter([score for win in wins for score in ((1.0, 0.0) if win else (0.0, 1.0))])
        low, high = compare(pairs, lambda texts, scores=scores: [next(scores) for _ in texts], "").total.interval
        held += low <= 0.8 <= high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"sentence_good": "a"}', "line 1: not a pair"),
        ("a.jsonl", '{"audio_good": "a.wav", "audio_bad": "b.wav"}', "pairs of audio need a model of speech"),
        ("a.jsonl", "nonsense", "line 1: not a pair"),
        ("a.jsonl", "", "holds no pairs"),
        ("a.csv", "id,filename,correct\n1,a,1\n", "line 2.*columns id, transcription"),
        ("a.csv", "id,correct,transcription\n1,1,a\n", "id '1' has no sentence with correct 0"),
    ],
)
def test_files_that_hold_no_pairs_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_pairs([tmp_path / name])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_pairs([tmp_path / "none.jsonl"])
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9\xe9")
    with pytest.raises(DataError, match="UTF-8"):
        read_pairs([tmp_path / "latin.jsonl"])
