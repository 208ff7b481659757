"""The long recording holds each clip where it says, and the errors of its clips add up to the whole's."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation import wer

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "long_form.py"))
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=5).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(references=st.lists(WORDS, min_size=1, max_size=5), hypotheses=st.lists(WORDS, min_size=1, max_size=5))
def test_errors_of_clips_add_up_to_the_edit_distance(references, hypotheses):
    whole, transcript = " ".join(filter(None, references)), " ".join(filter(None, hypotheses))
    counts = SCRIPT["by_clip"](references, transcript)
    assert counts.sum(0).tolist() == wer.count(wer.align([whole], [transcript], "word")).sum(0).tolist()
    assert counts[:, 3].tolist() == [len(reference.split()) for reference in references]
    exact = SCRIPT["by_clip"](references, whole)
    assert not exact[:, :3].any()


def test_an_error_belongs_to_its_clip():
    counts = SCRIPT["by_clip"](["the cat sat", "", "on the mat", "far away"], "the dog sat on the red mat well away")
    assert counts[:, :3].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert SCRIPT["by_clip"](["", "a"], "b a")[:, 2].tolist() == [0, 1]


def test_clips_stand_where_they_are_said_to():
    rate, lengths = 100, np.array([120, 50, 200, 80, 90])
    rows, starts = SCRIPT["draw"](lengths, rate, 0.1, (0.5, 1.0), 0)
    assert (rows, starts) == SCRIPT["draw"](lengths, rate, 0.1, (0.5, 1.0), 0)
    assert len(set(rows)) == len(rows) >= 2
    audio = [np.full(lengths[row], row + 1, np.int16) for row in rows]
    recording = SCRIPT["joined"](audio, starts)
    assert len(recording) <= 0.1 * 60 * rate
    end = 0
    for row, start in zip(rows, starts, strict=True):
        assert 0.5 * rate <= start - end <= rate
        assert not recording[end:start].any()
        end = start + lengths[row]
        assert (recording[start:end] == row + 1).all()
    assert end == len(recording)
    for minutes, silence in ((0.001, (0.5, 1.0)), (1.0, (2.0, 1.0)), (1.0, (-1.0, 1.0))):
        with pytest.raises(DataError, match=r"--minutes|--silence"):
            SCRIPT["draw"](lengths, rate, minutes, silence, 0)
