"""A rate other than 16 kHz, from the prepared set to transcripts."""

import json

import numpy as np
import pytest
import soundfile

from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.storage.index import read_index, read_sets
from data_pipelines.storage.records import RecordReader
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.objectives.base import frame_grid
from jax_speechlm.training.loop import train
from jax_speechlm.training.source import open_source
from tests.training import tiny

RATE, FILE_RATE = 8_000, 16_000
SECONDS = (0.8, 1.0, 1.2, 1.4)
MEL = tiny.MEL.replace(sample_rate=RATE)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A set at 8 kHz of noise in files at 16 kHz."""
    folder = tmp_path_factory.mktemp("rate")
    rows = []
    for number, seconds in enumerate(SECONDS):
        samples = np.random.default_rng(number).normal(0, 0.1, round(seconds * FILE_RATE)).clip(-1, 1)
        soundfile.write(folder / f"{number}.wav", samples, FILE_RATE)
        rows.append({"audio": f"{number}.wav", "text": "abc", "split": "train"})
    (folder / "low.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepare(manifest=folder / "low.jsonl", data_dir=folder / "data", sample_rate=RATE)
    assert report.hours == pytest.approx(sum(SECONDS) / 3600)
    return folder / "data"


def experiment(data_dir, **changes):
    whole = tiny.experiment("ctc", num_steps=2, **changes)
    return whole.replace(data=whole.data.replace(sets=("low",), data_dir=str(data_dir), seconds_per_batch=4.0))


def test_the_set_is_stored_at_its_rate(data_dir):
    index = read_index(data_dir / "low", "train")
    assert index.sample_rate == RATE
    assert sorted(index.num_samples) == [round(seconds * RATE) for seconds in SECONDS]
    flac, _ = RecordReader(index).read(0)
    assert len(decode_flac(flac)) == index.num_samples[0]
    assert prepare(manifest=data_dir.parent / "low.jsonl", data_dir=data_dir, sample_rate=RATE).clips == len(SECONDS)


def test_a_toy_trains_and_transcribes_files_at_any_rate(data_dir, tmp_path):
    low = experiment(data_dir, frontend=tiny.experiment().frontend.replace(mel=MEL))
    source = open_source(low)
    seconds = [bucket.num_samples / RATE for bucket in source.plan.buckets]
    assert max(SECONDS) <= max(seconds) < max(SECONDS) + 0.1
    train(low, tmp_path / "run", source)
    recognizer = open_transcriber(tmp_path / "run")
    assert recognizer.experiment.sample_rate == RATE
    (transcript,) = recognizer.transcribe([data_dir.parent / "3.wav"])
    assert transcript.seconds == pytest.approx(SECONDS[3])


def test_a_front_end_of_another_rate_is_refused(data_dir):
    with pytest.raises(DataError, match=r"low/train is sampled at 8000 Hz and the front end at 16000 Hz: .*--sample-"):
        open_source(experiment(data_dir))


def test_sets_of_two_rates_are_refused_and_old_sets_are_at_16_khz(data_dir, tmp_path):
    (tmp_path / "old").mkdir()
    meta = json.loads((data_dir / "low/meta.json").read_text())
    del meta["sample_rate"]
    (tmp_path / "old/meta.json").write_text(json.dumps(meta))
    (tmp_path / "old/index").symlink_to(data_dir / "low/index")
    assert read_index(tmp_path / "old", "train").sample_rate == 16_000
    both = read_index([tmp_path / "old", data_dir / "low"], "train")
    with pytest.raises(DataError, match="old/train is sampled at 16000 Hz and low/train at 8000 Hz"):
        both.sample_rate  # noqa: B018
    assert len(read_sets(data_dir, ["low"], "train", RATE)) == len(SECONDS)


@pytest.mark.parametrize("rate", [999, 10**6])
def test_impossible_rates_are_refused(rate, tmp_path):
    with pytest.raises(DataError, match="--sample-rate"):
        prepare(manifest=tmp_path / "any.jsonl", data_dir=tmp_path, sample_rate=rate)


def test_frames_at_two_rates_are_not_the_same():
    one, other = (frame_grid(tiny.MODEL, LogMel(sample_rate=rate, stack=32_000 // rate)) for rate in (8_000, 16_000))
    assert one != other


def test_windows_must_be_whole_samples():
    with pytest.raises(ValueError, match="must be a multiple of 200 Hz"):
        LogMel(sample_rate=11_025)
