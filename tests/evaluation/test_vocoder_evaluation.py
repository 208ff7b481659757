"""Copies of natural speech by a vocoder, judged beside the recordings."""

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.inference.vocode import Vocoder
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import write_run
from tests.evaluation.test_speech_distance import voice
from tests.training import tiny


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "tiny", tiny.experiment("vocoder"), None)


def test_a_vocoder_has_a_row_of_copies_with_its_speed(run, tmp_path):
    clips = [(np.int16(20_000 * voice(pitch, 0.3 + pitch / 1_000)), "some words") for pitch in (120, 150, 180)]
    write_prepared(tmp_path / "data" / "voice", {"test": clips})
    other = write_run(tmp_path / "other", tiny.experiment("vocoder").replace(seed=3), None)
    options = {"settings": JudgeSettings(judges=()), "data_dir": tmp_path / "data", "vocoders": (str(other),)}
    report = jax_speechlm.evaluate(run, ["voice"], limit=2, **options)
    assert [row.name for row in report.rows] == ["natural", "other copy", "tiny copy"]
    assert [text.id for text in report.utterances] == ["clip0", "clip1"]
    for row in report.rows[1:]:
        assert row.real_time_factor > 0
        assert row.first_audio_ms > 0
        assert row.measures["MCD"].value > 0
    folder = run / "eval" / "voice-test"
    assert (folder / "index.html").is_file()
    judged, rate = soundfile.read(folder / "audio" / "2" / "1.flac", dtype="int16")
    expected = Vocoder.load(run).copy(clips[1][0])
    assert rate == 16_000
    np.testing.assert_allclose(judged / 32_768, np.clip(expected, -1, 1), atol=1e-4)


def test_recordings_of_another_rate_are_refused(run, tmp_path, monkeypatch):
    write_prepared(tmp_path / "data" / "voice", {"test": [(np.int16(9_000 * voice(150, 0.3)), "some words")]})
    monkeypatch.setattr(Vocoder, "sample_rate", 24_000)
    with pytest.raises(DataError, match="24000 Hz"):
        jax_speechlm.evaluate(run, ["voice"], data_dir=tmp_path / "data")
