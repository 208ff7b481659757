"""`jax-speechlm units`, from audio to a HuBERT run and to the units of its hidden states."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.storage.index import read_index, read_sets
from data_pipelines.storage.units import UnitIdWriter, is_labelled, open_unit_ids, read_units, write_units
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.mfcc import mfcc
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import SpeechSource
from tests.data_pipelines.prepared import write_prepared

TONES = [200, 500, 900, 1400, 2100, 3000]
MEL = LogMel(num_mel_bins=20, stack=2)


def tones(seed: int, speaker: int) -> np.ndarray:
    """int16: some tones of 0.15 s; the speakers prefer different ones."""
    rng = np.random.default_rng(seed)
    time = np.arange(2400) / 16_000
    chosen = rng.integers(3, size=rng.integers(3, 7)) + 3 * speaker
    wave = np.concatenate([np.sin(2 * np.pi * TONES[tone] * time) for tone in chosen])
    return (6000 * wave + 50 * rng.normal(size=len(wave))).astype(np.int16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a labelled set in data/ and its units, and a HuBERT run on them."""
    root = tmp_path_factory.mktemp("units")
    clips = {
        "train": [(tones(i, i % 2), "") for i in range(24)] + [(np.zeros(100, np.int16), "")],
        "dev": [(tones(100 + i, i % 2), "") for i in range(8)],
    }
    write_prepared(root / "data" / "tones", clips, corrupt=[5])
    data = ["--data-dir", str(root / "data")]
    mel = ["--mel.num-mel-bins", "20", "--mel.stack", "2"]
    small = ["--num-units", "8", "--batch-size", "256", "--num-steps", "30"]
    assert cli.main(["units", "fit", "--sets", "tones", "--out", str(root / "mfcc"), *mel, *small, *data]) == 0
    assert cli.main(["units", "label", str(root / "mfcc"), "--sets", "tones", *data]) == 0
    assert cli.main(train(root, "run")) == 0
    return root


def train(root, run: str, *options: str) -> list[str]:
    """Returns the words of a small pretraining run; an option given replaces the one of that name."""
    defaults = [
        ["--num-steps", "4"],
        ["--data.sets", "tones"],
        ["--data.data-dir", str(root / "data")],
        ["--data.units", str(root / "mfcc")],
        ["--data.num-buckets", "1"],
        ["--data.seconds-per-batch", "8"],
        ["--data.batch-multiple", "8"],
        ["--objective.num-units", "8"],
        ["--frontend.mel.num-mel-bins", "20"],
        ["--frontend.mel.stack", "2"],
        ["--model.input-dim", "40"],
        ["--model.dim", "16"],
        ["--model.num-layers", "2"],
        ["--model.num-heads", "2"],
        ["--loop.checkpoint-every", "2"],
    ]
    kept = [word for default in defaults if default[0] not in options for word in default]
    return ["pretrain", "--config", "debian/hubert", "--run-dir", str(root / run), *kept, *options]


def test_every_frame_has_the_unit_nearest_to_its_mfcc(place):
    units, index = read_units(place / "mfcc"), read_sets(place / "data", ["tones"], "dev")
    codes = open_unit_ids(index, place / "mfcc")
    for row in (0, 1, 7):
        clip = tones(100 + row, row % 2)
        x, _ = mfcc(jnp.asarray(clip)[None], jnp.array([len(clip)]), MEL)
        distance = np.square(np.asarray(x[0], np.float64)[:, None] - units.centroids).sum(-1)
        nearest = distance.min(1, keepdims=True) * (1 + 1e-3) + 1e-3
        found = codes.read(row, 0, 10**6)
        assert len(found) == len(x[0])
        assert (np.take_along_axis(distance, found[:, None].astype(int), axis=1) <= nearest).all()


def test_a_record_that_cannot_be_read_has_no_codes(place):
    lengths = open_unit_ids(read_index(place / "data" / "tones", "train"), place / "mfcc").lengths
    assert np.flatnonzero(lengths == 0).tolist() == [5, 24]  # 24 is shorter than a frame


def test_labelling_goes_on_where_it_stopped(place, monkeypatch, capsys):
    """And gives the codes that one go gives."""
    index = read_index(place / "data" / "tones", "dev")
    (part,), units = index.parts, read_units(place / "mfcc")
    whole = [open_unit_ids(index, place / "mfcc").read(row, 0, 10**6).tolist() for row in range(8)]
    for file in part.index_path.parent.glob("dev.units-*"):
        file.unlink()
    write, written = UnitIdWriter.write, []

    def stopping(self, row, codes):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(row)
        write(self, row, codes)

    label = ["units", "label", str(place / "mfcc"), "--sets", "tones:dev", "--data-dir", str(place / "data")]
    monkeypatch.setattr(UnitIdWriter, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        cli.main(label)
    assert not is_labelled(part, units)
    again = []
    monkeypatch.setattr(UnitIdWriter, "write", lambda self, row, codes: again.append(row) or write(self, row, codes))
    assert cli.main(label) == 0
    assert sorted(written + again) == [0, 1, 2, 3, 4, 6, 7]  # 5 cannot be read
    assert [open_unit_ids(index, place / "mfcc").read(row, 0, 10**6).tolist() for row in range(8)] == whole
    assert cli.main(label) == 0
    assert "(kept)" in capsys.readouterr().out


def test_the_report_sees_that_speakers_have_their_own_units(place, capsys):
    arguments = ["units", "report", str(place / "mfcc"), "--sets", "tones", "--split", "train"]
    assert cli.main([*arguments, "--data-dir", str(place / "data")]) == 0
    report = json.loads((place / "mfcc" / "report" / "tones-train" / "report.json").read_text())
    assert report["labels"]["speaker"]["label_purity"] > 0.9
    assert report["labels"]["speaker"]["pnmi"] > 0.6
    assert report["speakers"]["accuracy"] == 1.0
    assert 4 < report["usage"]["units_per_second"] < 20
    assert "PNMI" in capsys.readouterr().out


def test_a_stopped_run_resumes_bit_for_bit(place, monkeypatch):
    batches = SpeechSource.batches

    def stopping(self, first_step, num_steps):
        for number, batch in enumerate(batches(self, first_step, num_steps)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(SpeechSource, "batches", stopping)
    assert cli.main(train(place, "stopped")) == 0
    assert ckpt.find(place / "stopped").name == "2"
    monkeypatch.undo()
    assert cli.main(train(place, "stopped")) == 0
    whole, stopped = (ckpt.read(ckpt.find(place / run)) for run in ("run", "stopped"))
    assert (whole.step, stopped.step) == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, whole.state, stopped.state)


def test_a_run_keeps_to_the_k_means_that_it_began_with(place, tmp_path, capsys):
    """Another k-means in the same folder, and every set labelled with it."""
    data, units = place / "data", read_units(place / "mfcc")
    other = dataclasses.replace(units, path=tmp_path / "other", centroids=units.centroids[::-1].copy())
    write_units(other)
    assert cli.main(train(place, "run", "--data.units", str(other.path))) == USER_ERROR
    assert "1 other k-means. Run: jax-speechlm units label" in capsys.readouterr().err
    assert cli.main(["units", "label", str(other.path), "--sets", "tones", "--data-dir", str(data)]) == 0
    try:
        write_units(dataclasses.replace(other, path=units.path))
        assert cli.main(train(place, "run")) == USER_ERROR
        assert f"began on other speech units ({units.fingerprint})" in capsys.readouterr().err
    finally:
        write_units(units)


def test_hidden_states_of_a_layer_are_clustered_and_a_changed_checkpoint_is_noticed(place, capsys):
    fit = ["units", "fit", "--sets", "tones", "--out", str(place / "hidden"), "--checkpoint", str(place / "run")]
    data = ["--data-dir", str(place / "data")]
    small = ["--num-units", "8", "--batch-size", "256", "--num-steps", "5"]
    assert cli.main([*fit, "--layer", "1", *small, *data]) == 0
    units = read_units(place / "hidden")
    assert units.centroids.shape == (8, 16)
    assert (units.frame_samples, units.context_samples) == (320, 240)
    assert cli.main(["units", "label", str(place / "hidden"), "--sets", "tones:dev", *data]) == 0
    assert cli.main([*fit, "--layer", "3", *small, *data]) == USER_ERROR
    assert "has 2 layers; layer 3 does not exist" in capsys.readouterr().err
    meta = json.loads((place / "hidden" / "units.json").read_text())
    meta["about"]["features"]["digest"] = "0" * 16
    (place / "hidden" / "units.json").write_text(json.dumps(meta))
    assert cli.main(["units", "label", str(place / "hidden"), "--sets", "tones:train", *data]) == USER_ERROR
    assert "has changed since the units were fitted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective.num-units", "9"], "set --objective.num_units 8"),
        (["--frontend.mel.stack", "1", "--model.input-dim", "20"], "has a unit each 320 samples"),
        (["--frontend.mel.variant", "librosa"], "Set frontend.mel.stack and variant"),
        (["--data.speeds", "0.9", "1.0"], "set data.speeds to 1.0"),
        (["--data.units", "None"], "set data.units to a folder"),
        (["--data.units", "nowhere"], "nowhere is not a folder of speech units"),
    ],
)
def test_what_does_not_fit_is_refused(place, options, message, capsys):
    assert cli.main(train(place, "refused", *options)) == USER_ERROR
    assert message in capsys.readouterr().err
