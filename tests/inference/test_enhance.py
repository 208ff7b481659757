"""The command `enhance`: files, folders, recordings of any length, and files that cannot be read."""

import numpy as np
import pytest
import soundfile

from data_pipelines.audio.decode import decode
from data_pipelines.core.errors import DataError
from jax_speechlm.cli import main
from jax_speechlm.frontend.clean_up import CleanUp
from jax_speechlm.inference import enhance as module
from jax_speechlm.inference.enhance import Enhancement, enhance, enhance_files

RATE = 8000


def recording(seconds, seed=0):
    """Syllables and noise, int16."""
    rng, time = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    tone = 4000 * np.sin(2 * np.pi * 300 * time) * (np.sin(2 * np.pi * 2 * time) > 0.5)
    return (tone + 100 * rng.standard_normal(len(time))).astype(np.int16)


def test_pieces_of_a_long_recording_join(monkeypatch):
    samples, config = recording(7.5), Enhancement(clean_up=CleanUp(method="wiener"))
    whole = enhance(samples, RATE, config)
    monkeypatch.setattr(module, "_PIECE", 3.0)
    monkeypatch.setattr(module, "_AROUND", 2.0)
    pieces = enhance(samples, RATE, config)
    assert len(pieces) == len(samples)
    assert np.abs(pieces.astype(int) - whole).max() <= 30  # 40 dB below the noise's peaks


def test_a_file_and_a_folder(tmp_path, capsys):
    (tmp_path / "in/sub").mkdir(parents=True)
    soundfile.write(tmp_path / "in/a.flac", recording(1.0), RATE)
    soundfile.write(tmp_path / "in/sub/b.wav", recording(1.2, 1), RATE)
    (tmp_path / "in/notes.txt").write_text("no audio")
    assert main(["enhance", str(tmp_path / "in/a.flac"), str(tmp_path / "a.wav"), "--sample-rate", str(RATE)]) == 0
    enhance_files(tmp_path / "in", tmp_path / "out", sample_rate=RATE)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a.wav", "b.wav"]
    alone, together = decode(tmp_path / "a.wav", rate=RATE), decode(tmp_path / "out/a.wav", rate=RATE)
    np.testing.assert_array_equal(alone, together)
    quiet = slice(RATE // 4 + 500, RATE // 2 - 500)  # a pause
    assert np.std(alone[quiet]) < 0.35 * np.std(recording(1.0)[quiet])
    enhance_files(tmp_path / "in/a.flac", tmp_path / "b.flac", "none", tempo=2.0, peak=-6.0, sample_rate=RATE)
    changed = decode(tmp_path / "b.flac", rate=RATE)
    assert len(changed) == RATE // 2
    assert np.abs(changed.astype(int)).max() == pytest.approx(2**15 * 10**-0.3, abs=2)
    assert "dB" in capsys.readouterr().out


def test_files_that_cannot_be_read_are_named_and_the_rest_is_written(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/good.wav", recording(0.5), RATE)
    (tmp_path / "in/bad.wav").write_bytes(b"RIFF nothing")
    soundfile.write(tmp_path / "in/nan.wav", np.full(800, np.nan, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="2 of 3 files"):
        enhance_files(tmp_path / "in", tmp_path / "out", sample_rate=RATE)
    errors = capsys.readouterr().err
    assert "bad.wav" in errors
    assert "not finite" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.wav"]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("out.mp3", {}, r"\.wav or \.flac"),
        ("a.wav", {}, "the recording itself"),
        ("b.wav", {"loudness": -23.0, "rms": -20.0}, "only one of --loudness and --rms"),
        ("b.wav", {"sample_rate": 11_025}, "multiple of 10"),
        ("b.wav", {"high_pass": 4000.0, "sample_rate": RATE}, "half of the sample rate"),
    ],
)
def test_impossible_settings(tmp_path, target, options, message):
    soundfile.write(tmp_path / "a.wav", recording(0.2), RATE)
    with pytest.raises(DataError, match=message):
        enhance_files(tmp_path / "a.wav", tmp_path / target, **options)


def test_folders_without_audio_or_with_the_same_name_twice(tmp_path):
    with pytest.raises(DataError, match="no audio files"):
        enhance_files(tmp_path, tmp_path / "out")
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, recording(0.2), RATE)
    with pytest.raises(DataError, match="rename one"):
        enhance_files(tmp_path, tmp_path / "out")


def test_nothing_and_silence():
    assert len(enhance(np.zeros(0, np.int16), RATE, Enhancement(tempo=2.0, measure="rms"))) == 0
    silent = enhance(np.zeros(500, np.int16), RATE, Enhancement(measure="loudness"))
    np.testing.assert_array_equal(silent, np.zeros(500, np.int16))
