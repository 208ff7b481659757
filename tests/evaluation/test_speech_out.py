"""Evaluation of vocoders and synthesizers: which rows are judged, and that their audio is what the runs compute."""

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.synthesis import SpokenText
from jax_speechlm.evaluation.synthesizers import unit_texts
from jax_speechlm.inference.codec import CodecModel
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.vocode import Vocoder
from tests.data_pipelines.prepared import write_prepared
from tests.data_pipelines.unit_sets import label, make_units
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


def test_a_codec_has_a_row_of_copies_with_its_bits_per_second(tmp_path):
    codec = write_run(tmp_path / "tiny", tiny.experiment("codec"), None)
    clips = [(np.int16(20_000 * voice(pitch, 0.3 + pitch / 1_000)), "some words") for pitch in (120, 150, 180)]
    write_prepared(tmp_path / "data" / "voice", {"test": clips})
    other = write_run(tmp_path / "other", tiny.experiment("codec").replace(seed=3), None)
    options = {"settings": JudgeSettings(judges=()), "data_dir": tmp_path / "data", "codecs": (other,)}
    report = jax_speechlm.evaluate(codec, ["voice"], limit=2, **options)
    assert [row.name for row in report.rows] == ["natural", "other copy", "tiny copy"]
    model = CodecModel.load(codec)
    ids = model.encode_codes([samples for samples, _ in clips[:2]])
    rate, seconds = report.rows[2].bitrate, sum(len(samples) for samples, _ in clips[:2]) / 16_000
    assert rate.units_per_second == pytest.approx(sum(map(len, ids)) / seconds)
    assert rate.bits_per_second == pytest.approx(rate.units_per_second * np.log2(model.config.codebook_size))
    assert report.rows[2].real_time_factor > 0
    assert report.rows[0].bitrate is None
    judged, _ = soundfile.read(codec / "eval" / "voice-test" / "audio" / "2" / "1.flac", dtype="int16")
    (expected,) = model.decode_codes([ids[1]])
    assert len(judged) == len(clips[1][0])
    np.testing.assert_allclose(judged / 32_768, expected[: len(judged)], atol=1e-4)
    head, _, *lines = (codec / "eval" / "voice-test" / "table.md").read_text().splitlines()[2:7]
    assert head.endswith("| units/second | bits/second | entropy/second |")
    assert lines[0].endswith("| - | - | - |")
    assert lines[2].endswith(
        f"| {rate.units_per_second:.1f} | {rate.bits_per_second:.0f} | {rate.entropy_per_second:.0f} |"
    )


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


def test_a_voice_of_units_speaks_those_of_the_set(copying, tmp_path, monkeypatch):
    clips = [(np.int16(9_000 * voice(150, 0.4 + 0.1 * number)), "some words") for number in range(3)]
    write_prepared(tmp_path / "data" / "voice", {"test": clips})
    units = make_units(tmp_path / "units", 6)
    ids = label(read_index(tmp_path / "data" / "voice", "test"), units)
    experiment = tiny.experiment("tts")
    experiment = experiment.replace(
        objective=experiment.objective.replace(classes=(), text="units"),
        data=experiment.data.replace(units=str(tmp_path / "moved")),
    )
    run = write_run(tmp_path / "tiny", experiment, units.tokenizer, units.fingerprint)
    spoken, stream = [], Synthesizer.stream

    def remember(self, text, *args, **options):
        spoken.append(text)
        return stream(self, text, *args, **options)

    monkeypatch.setattr(Synthesizer, "stream", remember)
    options = {"settings": JudgeSettings(judges=()), "data_dir": tmp_path / "data", "units": units.path, "limit": 2}
    report = jax_speechlm.evaluate(run, ["voice"], **options)
    sequences = [units.sequence(row)[0] for row in ids[:2]]
    assert spoken[:2] == [" ".join(map(str, sequence)) for sequence in sequences]
    assert [utterance.reference for utterance in report.utterances] == ["some words"] * 2
    rates = {row.name: row.bitrate for row in report.rows}
    assert rates["natural"] is rates["griffin-lim copy"] is None
    seconds = sum(len(samples) for samples, _ in clips[:2]) / 16_000
    assert rates["tiny + griffin-lim"].units_per_second == pytest.approx(sum(map(len, sequences)) / seconds)
    with pytest.raises(DataError, match="moved is not a folder of speech units"):
        jax_speechlm.evaluate(run, ["voice"], **options | {"units": None})
    other = make_units(tmp_path / "other", 6, seed=1)
    with pytest.raises(CheckpointError, match="name the folder of the former with --units"):
        jax_speechlm.evaluate(run, ["voice"], **options | {"units": other.path})


def test_recordings_too_short_for_a_unit_are_named(copying, tmp_path):
    clips = [(np.int16(9_000 * voice(150, seconds)), "some words") for seconds in (0.4, 0.02)]
    write_prepared(tmp_path / "voice", {"test": clips})
    units = make_units(tmp_path / "units", 6)
    index = read_index(tmp_path / "voice", "test")
    label(index, units)
    texts = [SpokenText(f"clip{number}", "some words") for number in range(2)]
    with pytest.raises(DataError, match=r"1 utterances are too short for a unit of .*, such as clip1"):
        unit_texts(index, units.path, texts)
