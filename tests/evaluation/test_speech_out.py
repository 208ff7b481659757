"""Evaluation of vocoders and synthesizers: which rows are judged, and that their audio is what the runs compute."""

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.inference.synthesize import Synthesizer
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
    with pytest.raises(DataError, match="works at 24000 Hz, and the recordings are at 16000 Hz"):
        jax_speechlm.evaluate(run, ["voice"], data_dir=tmp_path / "data")


LETTERS = CharTokenizer("abcdefgh .")


@pytest.fixture
def copying(monkeypatch):
    """A vocoder that is fast and known: every sample of a frame is the mean of its log-mel."""

    class Known(Vocoder):
        def __init__(self, mel):
            self.mel = mel

        def vocode(self, mels):
            return [np.repeat(np.tanh(mel.mean(1)), self.mel.hop).astype(np.float32) for mel in mels]

    monkeypatch.setattr(Vocoder, "load", classmethod(lambda cls, path, mel=None: Known(mel)))


def test_a_synthesizer_has_rows_of_copies_and_of_speech(copying, tmp_path, monkeypatch):
    texts = "bad cafe", "a fed head", "deaf"
    clips = [(np.int16(9_000 * voice(150, 0.4)), text) for text in texts]
    write_prepared(tmp_path / "data" / "voice", {"test": clips})
    experiment = tiny.experiment("tts")
    experiment = experiment.replace(objective=experiment.objective.replace(classes=("speaker1", "speaker0")))
    run = write_run(tmp_path / "tiny", experiment, LETTERS)
    said = []
    stream = Synthesizer.stream

    def remember(self, text, speaker=None, speed=1.0, language="en"):
        said.append((text, speaker, language))
        return stream(self, text, speaker, speed, language)

    monkeypatch.setattr(Synthesizer, "stream", remember)
    options = {"settings": JudgeSettings(judges=()), "data_dir": tmp_path / "data", "vocoders": ("griffin-lim", "a/b")}
    report = jax_speechlm.evaluate(run, ["voice"], **options)
    assert [row.name for row in report.rows] == [
        "natural",
        "griffin-lim copy",
        "b copy",
        "tiny + griffin-lim",
        "tiny + b",
    ]
    expected = [(text, f"speaker{number % 2}", "en") for number, text in enumerate(texts)]
    assert said[:3] == said[3:6] == expected  # once for the samples, once for the time
    assert report.rows[4].real_time_factor > 0
    assert report.rows[4].first_audio_ms > 0
    judged, _ = soundfile.read(run / "eval" / "voice-test" / "audio" / "3" / "1.flac", dtype="float32")
    (speech,) = Synthesizer.load(run).synthesize(texts[1], "speaker1")
    np.testing.assert_allclose(judged[: len(speech.samples)], speech.samples, atol=1e-4)
    assert len(judged) == max(len(speech.samples), 1_600)
