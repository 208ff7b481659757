"""Word times kept beside an index: those of the transcript's own words, once for each recogniser."""

import itertools
import re
import types

import numpy as np
import pytest
import soundfile

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from data_pipelines.storage.word_times import find_word_times, read_word_times
from data_pipelines.tokenizers.base import CharTokenizer, train_tokenizer
from jax_speechlm.apps import align as aligner
from jax_speechlm.decoding.ctc.alignment import AlignedUtterance
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.inference.asr.ctc import Recognizer
from tests.data_pipelines.spoken_sets import write_spoken_set

TOKENIZER = CharTokenizer("abc ")
FRONT_END = FrontEnd()
FRAME = FRONT_END.mel.frame_samples
TEXTS = ["ab c", "", "cab", "a - b", "abc " * 30, "c a b"]  # of row 3 one word is unknown, row 4 is too long
FRAMES = 30


class Said(Recognizer):
    """A recogniser that hears each character of one text for two frames, unknown ones as an `a`."""

    experiment = types.SimpleNamespace(frontend=FRONT_END, frame_samples=FRAME, sample_rate=FRONT_END.mel.sample_rate)
    tokenizer = None  # set by the instance

    def __init__(self, alphabet: str):
        object.__setattr__(self, "tokenizer", CharTokenizer(alphabet))

    def log_probs(self, text: str) -> np.ndarray:
        known = [(self.tokenizer.encode(each) or self.tokenizer.encode("a"))[0] for each in text]
        ids = [0, *(number for each in known for number in (each, each, 0))]
        return np.where(np.arange(self.tokenizer.vocab_size) == np.array(ids)[:, None], -0.01, -9.0).astype(np.float32)

    def align(self, *texts: str, **options) -> list[AlignedUtterance]:
        utterances = [(str(row), text, 9.0, self.log_probs(text)) for row, text in enumerate(texts)]
        aligned, skipped = aligner.align_utterances(self, utterances, **options)
        assert len(aligned) + len(skipped) == len(texts)
        return aligned


@pytest.mark.parametrize("text", ["Please press 2 o'clock", "2 two 2", "the é Ω end", "99 9 x", "x9", "9x"])
def test_labels_are_the_words_of_the_transcript_with_unknown_characters(text):
    (found,) = Said("abcdefghijklmnopqrstuvwxyz ").align(text)
    assert [word.word for word in found.words] == text.split()
    assert all(word.start < word.end for word in found.words)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found.words))
    for word, match in zip(found.words, re.finditer(r"\S+", text), strict=True):  # two frames of three a character
        assert word.start == pytest.approx((1 + 3 * match.start()) * FRAME / 16_000, abs=FRAME / 16_000)
        assert word.end == pytest.approx((3 * match.end()) * FRAME / 16_000, abs=FRAME / 16_000)


def test_labels_in_scripts_without_spaces_are_characters():
    (found,) = Said("今天气好abc ").align("今天 abc气好坏")
    assert [word.word for word in found.words] == ["今", "天", "abc", "气", "好", "坏"]
    starts = [word.start for word in found.words]
    assert starts == sorted(set(starts))
    (found,) = Said("今天气好abc ").align("今天 abc气好坏", by_character=False)
    assert [word.word for word in found.words] == ["今天", "abc气好坏"]


def test_labels_of_pieces_with_several_characters():
    texts = ["今天天气很好", "今天很好", "天气很好", "hello there", "hello hello"] * 20
    tokenizer = train_tokenizer(texts, "unigram", 20)
    recognizer = Said("a")
    object.__setattr__(recognizer, "tokenizer", tokenizer)
    text = "Hello 今天天气很好 there"
    ids = [0, *(number for each in tokenizer.encode(text) for number in (each, each, 0))] + [0] * 6
    log_probs = np.where(np.arange(tokenizer.vocab_size) == np.array(ids)[:, None], -0.01, -9.0).astype(np.float32)
    ((found,), _) = aligner.align_utterances(recognizer, [("x", text, 9.0, log_probs)])
    assert [word.word for word in found.words] == ["Hello", *"今天天气很好", "there"]
    assert all(one.end <= other.start + 1e-9 for one, other in itertools.pairwise(found.words))


def test_nothing_known_is_left_out_and_named():
    assert Said("abc").align("99 Ω") == []


@pytest.fixture
def speech_files(tmp_path, monkeypatch):
    recognizer = Said("abcdefghijklmnopqrstuvwxyz ")

    def write(*files: tuple[str, str]):
        said = []
        for name, text in files:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True, parents=True)
            soundfile.write(path, np.zeros(16_000, np.int16), 16_000)
            path.with_suffix(".txt").write_text(text, "utf-8")
            said.append(text)
        texts = iter(said)
        monkeypatch.setattr(Said, "posteriors", lambda self, batches: {0: self.log_probs(next(texts))})
        monkeypatch.setattr(aligner.Recognizer, "load", lambda path: recognizer)
        return tuple(tmp_path / name for name, _ in files)

    return write


@pytest.mark.parametrize("format", ["textgrid", "ctm", "json"])
@pytest.mark.parametrize("names", [("a/x.wav", "b/x.wav"), ("x.wav", "x.flac")])
def test_files_of_one_name_are_refused_not_overwritten(speech_files, tmp_path, format, names):
    files = speech_files(*((name, "abc") for name in names))
    with pytest.raises(DataError, match="'x' and 'x' would both be called 'x': rename one"):
        aligner.align_run(tmp_path, files, format=format, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ids_that_would_be_written_alike_are_refused():
    aligner._check_names(["a/b", "a_b", "a b"], "json")
    with pytest.raises(DataError, match=r"'a/b' and 'a_b' would both be called 'a_b'.*--format json"):
        aligner._check_names(["a/b", "a_b"], "textgrid")
    with pytest.raises(DataError, match="'a b' and 'a_b'"):
        aligner._check_names(["a b", "a_b"], "ctm")


def test_files_written_for_files_of_different_names(speech_files, tmp_path, capsys):
    files = speech_files(("x.wav", "Lock 2"), ("y.wav", "abc"))
    aligner.align_run(tmp_path, files, format="textgrid", out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.TextGrid", "y.TextGrid"]
    assert 'text = "Lock"' in (tmp_path / "out/x.TextGrid").read_text("utf-8")
    printed = capsys.readouterr()
    assert "'L' (U+004C) 1 times" in printed.err
    assert "'2' (U+0032) 1 times" in printed.err
    assert "2 TextGrid files" in printed.out


class Heard(Recognizer):
    """A recogniser that hears each character of a row for two frames, from frame 3 + row on."""

    tokenizer = TOKENIZER
    experiment = types.SimpleNamespace(frontend=FRONT_END, frame_samples=FRAME, sample_rate=FRONT_END.mel.sample_rate)

    def __init__(self, seed: int = 0):
        object.__setattr__(self, "params", {"head": np.full(3, seed, np.float32)})

    def posteriors(self, batches):
        (rows,) = batches
        return {row: self._row(row) for row in rows}

    def _row(self, row: int) -> np.ndarray:
        spelled = np.zeros(FRAMES, int)
        ids = np.repeat(TOKENIZER.encode(TEXTS[row]), 2)[: FRAMES - 3 - row]
        spelled[3 + row : 3 + row + len(ids)] = ids
        return np.where(np.arange(TOKENIZER.vocab_size) == spelled[:, None], -0.01, -9.0).astype(np.float32)


@pytest.fixture
def part(tmp_path, monkeypatch):
    set_dir = write_spoken_set(tmp_path / "set", {"train": [(text, FRAMES * FRAME) for text in TEXTS]})
    index = read_index(set_dir, "train")

    class Speech(EvaluationSpeech):
        def __init__(self, *arguments):
            self.index = index

        def batches(self):
            return iter([[0, 1, 2], [3, 4, 5]])

    monkeypatch.setattr(aligner, "EvaluationSpeech", Speech)
    return index.parts[0]


def align(part, recognizer) -> object:
    return aligner.align_part(recognizer, "set", "train", part.set_dir.parent, 60.0)


def test_times_are_those_of_the_words_of_the_transcript(part, capsys):
    assert align(part, Heard()).parent == part.index_path.parent
    times = read_word_times(part)
    assert times.counts.tolist() == [2, 0, 1, 0, 0, 3]

    def word(row, first, letters):
        return [(3 + row + first) * FRAME, (3 + row + first + 2 * letters) * FRAME]

    assert times.of(0).tolist() == [word(0, 0, 2), word(0, 6, 1)]
    assert times.of(2).tolist() == [word(2, 0, 3)]
    assert times.of(5).tolist() == [word(5, 0, 1), word(5, 4, 1), word(5, 8, 1)]
    said = capsys.readouterr().out
    assert "3 utterances aligned, 3 left out, 1 of them because a word has no character" in said


def test_an_alignment_is_made_once_and_anew_by_another_recogniser(part, capsys):
    align(part, Heard())
    first = find_word_times(part).aligner
    assert align(part, Heard()) is None
    assert "already" in capsys.readouterr().out
    assert align(part, Heard(seed=1)) is not None
    assert find_word_times(part).aligner != first
    assert len(list(part.index_path.parent.glob("*words*"))) == 1


def test_files_are_not_kept_beside_an_index(part, monkeypatch):
    monkeypatch.setattr(aligner.Recognizer, "load", lambda path: Heard())
    with pytest.raises(DataError, match="--format index stores the times of prepared sets"):
        aligner.align_run(part.set_dir, files=(part.index_path,), format="index")
