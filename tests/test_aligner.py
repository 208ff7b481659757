"""Word times kept beside an index: those of the transcript's own words, once for each recogniser."""

import types

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.index import read_index
from data_pipelines.tokenizers import CharTokenizer
from data_pipelines.word_times import find_word_times, read_word_times
from jax_speechlm import aligner
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.recognizer import Recognizer
from tests.data_pipelines.spoken_sets import write_spoken_set

TOKENIZER = CharTokenizer("abc ")
FRONT_END = FrontEnd()
FRAME = FRONT_END.mel.frame_samples
TEXTS = ["ab c", "", "cab", "a - b", "abc " * 30, "c a b"]  # of row 3 one word is unknown, row 4 is too long
FRAMES = 30


class Heard(Recognizer):
    """A recogniser that hears each character of a row for two frames, from frame 3 + row on."""

    tokenizer = TOKENIZER
    experiment = types.SimpleNamespace(frontend=FRONT_END, frame_samples=FRAME)

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

    class Speech:
        def __init__(self, *arguments):
            self.index = index

        def batches(self):
            return iter([[0, 1, 2], [3, 4, 5]])

    monkeypatch.setattr(aligner, "PreparedSpeech", Speech)
    return index.parts[0]


def align(part, recognizer) -> object:
    return aligner.align_part(recognizer, "set", "train", part.set_dir.parent, 60.0)


def test_times_are_those_of_the_words_of_the_transcript(part, capsys):
    assert align(part, Heard()).parent == part.index_path.parent
    times = read_word_times(part)
    assert times.counts.tolist() == [2, 0, 1, 0, 0, 3]
    word = lambda row, first, letters: [(3 + row + first) * FRAME, (3 + row + first + 2 * letters) * FRAME]  # noqa: E731
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
    with pytest.raises(DataError, match="--format index keeps the times of prepared sets"):
        aligner.align_run(part.set_dir, files=(part.index_path,), format="index")
