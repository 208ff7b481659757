"""Pitch of prepared speech: measured once, stored beside the index, in step with the audio of batches."""

import numpy as np
import pytest

from data_pipelines.batching.plan import FILLER, make_eval_plan, make_plan
from data_pipelines.batching.rows import make_row_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.prepare import pitch as command
from data_pipelines.storage.index import IndexMismatchError, read_index, read_sets
from data_pipelines.storage.pitch import PitchSettings, find_pitch, open_pitch, pitch_writer
from data_pipelines.storage.units import FrameGrid, open_unit_ids
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.experiment import Speech
from jax_speechlm.tasks.inputs import FRAME_PITCH
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.unit_sets import label, make_units

SETTINGS = PitchSettings(16_000, 256)
CLIPS = [(noise(i, 3000 + 731 * (i * 7 % 29)), "") for i in range(30)]


def voice(hertz, seconds, rate=16_000):
    """Returns harmonics of a pitch after a fifth of a second of silence."""
    turns = np.arange(int(seconds * rate)) * hertz / rate
    audio = sum(4000 / n * np.sin(2 * np.pi * n * turns) for n in range(1, 5))
    return np.concatenate([np.zeros(rate // 5), audio]).astype(np.int16)


def random_pitch(index, settings=SETTINGS):
    """Writes a pitch for every row; returns it."""
    rows = [
        (np.random.default_rng(row).uniform(80, 300, settings.grid.num_frames(int(n))) * (row % 5 > 0)).astype(
            np.float32
        )
        for row, n in enumerate(index.num_samples)
    ]
    for number, part in enumerate(index.parts):
        with pitch_writer(part, settings) as write:
            write(rows[index.first_row[number] : index.first_row[number + 1]])
    return rows


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    sets = {"a": CLIPS[:18], "b": CLIPS[18:]}
    return read_index([write_prepared(root / name, {"train": clips}) for name, clips in sets.items()], "train")


class TestMeasuring:
    @pytest.mark.parametrize("hertz", [90, 200, 310])
    @pytest.mark.parametrize(("rate", "hop"), [(16_000, 256), (24_000, 300)])
    def test_voiced_frames_have_their_pitch_and_others_0(self, hertz, rate, hop):
        found = command.measure(voice(hertz, 0.6, rate), PitchSettings(rate, hop))
        assert found.dtype == np.float32
        assert len(found) == int(0.8 * rate) // hop + 1
        silent = int(0.2 * rate / hop) - 3
        assert not found[:silent].any()
        np.testing.assert_allclose(found[silent + 8 : -4], hertz, rtol=0.012)

    @pytest.mark.parametrize("samples", [0, 1, 255, 256, 1023, 1024, 2000])
    def test_frames_are_as_many_as_those_of_the_mel_spectrogram(self, samples):
        for audio in (np.zeros(samples, np.int16), noise(0, samples)):
            found = command.measure(audio, SETTINGS)
            assert len(found) == SynthesisMel().num_frames(samples) == SETTINGS.grid.num_frames(samples)
            assert np.isfinite(found).all()

    def test_the_command_measures_whole_sets_and_keeps_what_is_measured(self, tmp_path, capsys):
        clips = [(voice(hertz, 0.3), "") for hertz in (100, 150, 220)]
        write_prepared(tmp_path / "tones", {"train": clips, "dev": clips[:1]}, corrupt=[1])
        command.pitch(("tones",), processes=2, data_dir=tmp_path)
        assert "tones/train: 64 frames" in (printed := capsys.readouterr().out)
        assert "1 could not be read and have none" in printed
        train = read_index(tmp_path / "tones", "train")
        store = open_pitch(train, 16_000, 256)
        assert store.lengths.tolist() == [32, 0, 32]
        np.testing.assert_array_equal(store.read(2, 0, 99), command.measure(clips[2][0], SETTINGS))
        np.testing.assert_array_equal(store.read(2, 20, 24), command.measure(clips[2][0], SETTINGS)[20:24])
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "tones" / "index").glob("*.npz")}
        assert len(files) == 2
        command.pitch(("tones",), processes=1, data_dir=tmp_path)
        assert capsys.readouterr().out.count("(kept)") == 2
        assert {path: path.stat().st_mtime_ns for path in files} == files
        command.pitch(("tones:dev",), hop=320, processes=1, data_dir=tmp_path)
        assert "(kept)" not in capsys.readouterr().out
        assert find_pitch(read_index(tmp_path / "tones", "dev").parts[0]).settings.hop == 320

    def test_nothing_appears_if_it_does_not_finish(self, tmp_path, monkeypatch):
        set_dir = write_prepared(tmp_path / "tones", {"train": CLIPS[:3]})
        before = sorted(path.name for path in (set_dir / "index").iterdir())

        def fail(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(command, "measure", fail)
        with pytest.raises(KeyboardInterrupt):
            command.pitch(("tones",), processes=1, data_dir=tmp_path)
        assert sorted(path.name for path in (set_dir / "index").iterdir()) == before

    def test_wrong_requests_are_named(self, tmp_path, monkeypatch):
        write_prepared(tmp_path / "tones", {"train": CLIPS[:2]}, corrupt=[0, 1])
        with pytest.raises(DataError, match="name at least one prepared set"):
            command.pitch((), data_dir=tmp_path)
        with pytest.raises(DataError, match="nothing"):
            command.pitch(("nothing",), data_dir=tmp_path)
        with pytest.raises(DataError, match="must be at least 1"):
            command.pitch(("tones",), hop=0, data_dir=tmp_path)
        with pytest.raises(DataError, match=r"below --high-hertz \(50\)"):
            command.pitch(("tones",), high_hertz=50, data_dir=tmp_path)
        with pytest.raises(DataError, match="none of the 2 records of tones/train can be read"):
            command.pitch(("tones",), processes=1, data_dir=tmp_path)

        (part,) = read_index(tmp_path / "tones", "train").parts

        def refuse(*_, **__):
            raise PermissionError("read-only")

        monkeypatch.setattr("pathlib.Path.open", refuse)
        with (
            pytest.raises(DataError, match="cannot be written, and pitch is stored next to its index"),
            pitch_writer(part, SETTINGS),
        ):
            pass

    def test_records_that_are_not_those_of_the_index_are_an_error(self, tmp_path, monkeypatch):
        write_prepared(tmp_path / "tones", {"train": CLIPS[:2]})
        monkeypatch.setattr(command, "decode_flac", lambda flac: np.zeros(77, np.int16))
        with pytest.raises(IndexMismatchError, match="has 77 samples"):
            command.pitch(("tones",), processes=1, data_dir=tmp_path)


class TestStore:
    def test_other_settings_than_the_front_end_s_are_refused(self, tmp_path):
        write_prepared(tmp_path / "a", {"train": CLIPS[:3]})
        index = read_sets(tmp_path, ("a",), "train")
        with pytest.raises(DataError, match=r"not measured. Run: jax-speechlm pitch a:train --hop 256 --data-dir "):
            open_pitch(index, 16_000, 256)
        random_pitch(index)
        with pytest.raises(DataError, match="every 256 samples at 16000 Hz, and the front end has a frame every 300 "):
            open_pitch(index, 24_000, 300)
        first = open_pitch(index, 16_000, 256).fingerprint
        random_pitch(index, PitchSettings(16_000, 256, low_hertz=70.0))
        assert open_pitch(index, 16_000, 256).fingerprint == first
        (file,) = (tmp_path / "a" / "index").glob("*.npz")
        file.write_bytes(file.read_bytes()[:-100])
        assert find_pitch(index.parts[0]) is None

    def test_a_task_reads_it_for_its_front_end(self, index):
        rows = random_pitch(index)
        data, objective, grid = Speech(sets=("a",)), CTC(), FrameGrid(256, -256)
        store = FRAME_PITCH.read(objective, data, SynthesisMel(), grid, index, True)
        np.testing.assert_array_equal(store.read(7, 0, 999), rows[7])
        with pytest.raises(ValueError, match="at its own speed"):
            FRAME_PITCH.read(objective, data.replace(speeds=(0.9, 1.0)), SynthesisMel(), grid, index, True)
        with pytest.raises(ValueError, match=r"those of frontend\.mel \(kaldi\) are not"):
            FRAME_PITCH.read(objective, data, LogMel(), grid, index, True)


class TestBatches:
    def test_every_row_has_its_pitch_and_0_at_padding(self, index):
        rows = random_pitch(index)
        plan = make_plan(index.num_samples, seconds_per_batch=6, seed=5, num_buckets=3, batch_multiple=4)
        store = open_pitch(index, 16_000, 256)
        fillers = 0
        for batch in open_batches(index, plan, pitch=store, num_steps=plan.steps_per_epoch):
            assert batch["pitch"].dtype == np.float32
            assert batch["pitch"].shape == (len(batch["audio"]), SynthesisMel().num_frames(batch["audio"].shape[1]))
            for row, found in zip(batch["example_id"], batch["pitch"], strict=True):
                expected = rows[row] if row != FILLER else []
                fillers += row == FILLER
                np.testing.assert_array_equal(found[: len(expected)], expected)
                assert not found[len(expected) :].any()
        assert fillers, "no filler row was tried"

    def test_a_crop_takes_its_pitch_along(self, index):
        rows, cropped = random_pitch(index), 0
        plan = make_plan(index.num_samples, seconds_per_batch=6, seed=0, num_buckets=2, max_crop=0.4)
        for batch in open_batches(index, plan, pitch=open_pitch(index, 16_000, 256), num_steps=plan.steps_per_epoch):
            names = "example_id", "audio", "audio_length", "pitch"
            for row, audio, length, found in zip(*(batch[name] for name in names), strict=True):
                if row >= 0 and length < len(clip := CLIPS[row][0]):
                    (start,) = [s for s in range(0, len(clip), 256) if np.array_equal(clip[s : s + length], audio)]
                    count = SynthesisMel().num_frames(int(length))
                    np.testing.assert_array_equal(found[:count], rows[row][start // 256 :][:count])
                    cropped += 1
        assert cropped

    def test_packed_rows_have_it_at_the_frames_of_their_utterances(self, index):
        rows, mel = random_pitch(index), SynthesisMel()
        store = open_pitch(index, 16_000, 256)
        options = {"seconds_per_batch": 6, "seed": 5, "batch_multiple": 4, "gap_samples": mel.gap_samples}
        plan = make_row_plan(index.num_samples, frame_samples=256, **options)
        for batch in open_batches(index, plan, pitch=store, num_steps=plan.steps_per_epoch):
            expected = np.zeros((len(batch["audio"]), mel.num_frames(batch["audio"].shape[1])), np.float32)
            for row, place in np.argwhere(batch["example_id"] >= 0):
                first, own = batch["audio_start"][row, place] // 256, rows[batch["example_id"][row, place]]
                assert not expected[row, first : first + len(own)].any()
                expected[row, first : first + len(own)] = own
            np.testing.assert_array_equal(batch["pitch"], expected)
        with pytest.raises(ValueError, match=r"multiples of 320 samples.*pitch is every 256.*data\.packed"):
            open_batches(index, make_row_plan(index.num_samples, frame_samples=320, **options), pitch=store)

    def test_what_does_not_fit_together_is_refused(self, index, tmp_path):
        random_pitch(index)
        store = open_pitch(index, 16_000, 256)
        plan = make_eval_plan(np.tile(index.num_samples, 2), seconds_per_batch=6)
        with pytest.raises(ValueError, match="pitch is of audio at its own speed"):
            open_batches(index, plan, pitch=store, speeds=(0.9, 1.0))
        units = make_units(tmp_path / "units", num_units=5, frame_samples=320, context=240)
        label(index, units)
        plan = make_eval_plan(index.num_samples, seconds_per_batch=6)
        with pytest.raises(ValueError, match="frame labels and pitch are of different frames"):
            open_batches(index, plan, pitch=store, frame_labels=open_unit_ids(index, units.path))
