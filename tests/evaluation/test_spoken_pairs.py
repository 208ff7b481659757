"""Spoken minimal pairs: sets are read as they are handed out, voices of a pair count as one, what lacks is named."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.spoken_pairs import SpokenPair, compare_spoken, read_spoken_pairs

SWUGGY = """id,filename,voice,frequency,word,phones,length,correct
1,aXk,A,120,abduct,AE B,5,1
1,bXk,A,120,abdect,AE B,5,0
1,cXk,B,120,abduct,AE B,5,1
1,dXk,B,120,abdect,AE B,5,0
2,eXk,A,0,zyx,Z,3,1
2,fXk,A,,zyg,Z,3,0
"""
SBLIMP = """id,filename,voice,type,subtype,correct,transcription
1,s1,A,agreement,x,1,the keys are
1,s2,A,agreement,x,0,the keys is
1,s3,A,agreement,y,0,a key are
1,s4,A,agreement,y,1,a key is
1,s5,A,gap,z,1,who left
1,s6,A,gap,z,0,who leave
"""


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.wav").touch()
    return folder


def gold(folder: Path, content: str) -> Path:
    touch(folder, *(line.split(",")[1] for line in content.splitlines()[1:]))
    (folder / "gold.csv").write_text(content)
    return folder


def names(pairs: list[SpokenPair]) -> list[tuple[str, str]]:
    return [(pair.good.stem, pair.bad.stem) for pair in pairs]


def test_swuggy_as_it_is_handed_out(tmp_path):
    folder = gold(tmp_path / "lexical" / "dev", SWUGGY)
    pairs = read_spoken_pairs([folder])
    assert names(pairs) == [("aXk", "bXk"), ("cXk", "dXk"), ("eXk", "fXk")]
    assert pairs == read_spoken_pairs([folder / "gold.csv"])
    assert [pair.groups for pair in pairs] == [
        {"voice": "A", "frequency": "100 and more"},
        {"voice": "B", "frequency": "100 and more"},
        {"voice": "A", "frequency": "not in LibriSpeech"},
    ]
    assert pairs[0].item == pairs[1].item != pairs[2].item


def test_sblimp_as_it_is_handed_out(tmp_path):
    """Ids begin anew in each subtype."""
    pairs = read_spoken_pairs([gold(tmp_path / "syntactic" / "test", SBLIMP)])
    assert names(pairs) == [("s1", "s2"), ("s4", "s3"), ("s5", "s6")]
    assert len({pair.item for pair in pairs}) == 3
    assert [pair.groups["type"] for pair in pairs] == ["agreement", "agreement", "gap"]


def test_story_cloze_as_it_is_handed_out(tmp_path):
    """Numbers count recordings, not stories; a story's name may hold digits and hyphens."""
    folder = touch(tmp_path / "tSC", "0_a-1_correct", "1_a-1_incorrect", "2_b2_incorrect", "3_b2_correct")
    assert names(read_spoken_pairs([folder])) == [
        ("0_a-1_correct", "1_a-1_incorrect"),
        ("3_b2_correct", "2_b2_incorrect"),
    ]
    short = touch(tmp_path / "sSC", "7_correct", "7_incorrect", "12_incorrect", "12_correct")
    assert sorted(names(read_spoken_pairs([short]))) == [("12_correct", "12_incorrect"), ("7_correct", "7_incorrect")]


def test_salmon_as_it_is_handed_out(tmp_path):
    root = tmp_path / "salmon_benchmark"
    for part in ("gender_consistency", "bg_alignment"):
        touch(root / part, "sample_0_0", "sample_0_1", "sample_11_1", "sample_11_0")
    pairs = read_spoken_pairs([root])
    assert len(pairs) == 4
    assert {pair.groups["folder"] for pair in pairs} == {"gender_consistency", "bg_alignment"}
    assert set(names(pairs)) == {("sample_0_0", "sample_0_1"), ("sample_11_0", "sample_11_1")}
    assert len({pair.item for pair in pairs}) == 4
    assert names(read_spoken_pairs([root / "bg_alignment"])) == names(pairs)[:2]


def test_voices_of_a_pair_count_as_one_and_ties_half(tmp_path):
    pairs = read_spoken_pairs([gold(tmp_path / "dev", SWUGGY)])
    report = compare_spoken(pairs, [-1.0, -2.0, -3.0, -3.0, -5.0, -4.0], "run")
    assert report.total.accuracy == (np.mean([1, 0.5]) + 0) / 2
    assert report.total.pairs == 2
    assert {name: each.accuracy for name, each in report.groups.items()} == {
        "frequency 100 and more": 0.75,
        "frequency not in LibriSpeech": 0.0,
        "voice A": 0.5,
        "voice B": 0.5,
    }


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        pairs = [SpokenPair(Path("a"), Path("b"), str(row), {}) for row in range(100)]
        scores = np.stack([rng.random(100) < 0.7, np.full(100, 0.5)], axis=1).ravel()
        low, high = compare_spoken(pairs, scores.tolist(), "").total.interval
        held += low <= 0.7 <= high
    assert 0.89 < held / 200 < 0.99
    few = compare_spoken(pairs[:29], scores.tolist()[:58], "")
    assert few.total.interval is None
    list(few.tables())


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none is not a folder"):
        read_spoken_pairs([tmp_path / "none"])
    with pytest.raises(DataError, match=r"holds no spoken pairs: it needs a gold.csv"):
        read_spoken_pairs([touch(tmp_path / "other", "speech")])
    with pytest.raises(DataError, match=r"sample_4_0.wav has no partner"):
        read_spoken_pairs([touch(tmp_path / "half", "sample_4_0")])
    folder = gold(tmp_path / "gone", SWUGGY)
    (folder / "cXk.wav").unlink()
    with pytest.raises(DataError, match=r"cXk.wav, which .*gold.csv names, does not exist"):
        read_spoken_pairs([folder])
    (folder / "gold.csv").write_text("\n".join(SWUGGY.splitlines()[:2]))
    with pytest.raises(DataError, match=r"id '1' in voice 'A' has 1 recordings with correct 1 and 0 with 0"):
        read_spoken_pairs([folder])
    (folder / "gold.csv").write_text("id,word\n1,a\n")
    with pytest.raises(DataError, match="line 2: not a line of spoken pairs"):
        read_spoken_pairs([folder])
