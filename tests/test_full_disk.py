"""A disk that is really full: whatever was finished stays, the message says what to do, and then the work goes on."""

import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.state import TrainState

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system of 3 MiB, whose lack of room nobody asks about beforehand; `grow` it with its second part."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int, *options: str) -> None:
        options = ",".join((f"size={size}", *options))
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    try:
        mount(3 * MEGABYTE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    usage = shutil.disk_usage(folder)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    yield folder, lambda: mount(32 * MEGABYTE, "remount")
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_while_a_checkpoint_is_written(small_disk):
    folder, grow = small_disk
    checkpoints = ckpt.Checkpoints(folder, keep_last=9)

    def save(step: int) -> None:
        zero = jnp.zeros([], jnp.int32)
        noise = jax.random.normal(jax.random.key(step), (5 * MEGABYTE // 16,))  # two fit
        checkpoints.save(step, TrainState(zero, {"noise": noise}, (), {}, zero, zero), {"step": step})
        checkpoints.wait()

    save(1)
    save(2)
    with pytest.raises(ckpt.CheckpointError, match=r"disk became full .* goes on from the last complete checkpoint"):
        save(3)
    whole = ckpt.read(ckpt.find(folder))
    assert whole.step == 2
    assert np.isfinite(whole.state["params"]["noise"]).all()
    grow()
    checkpoints = ckpt.Checkpoints(folder, keep_last=9)
    save(3)
    assert checkpoints.steps == [1, 2, 3]


def test_while_records_are_written(small_disk, tmp_path):
    """The clips fit, as FLAC in the work folder; the records, their copy, do not."""
    folder, grow = small_disk
    rng = np.random.default_rng(0)
    for number in range(20):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(0, 0.2, 48_000), 16_000)
    rows = [{"audio": f"{number}.wav", "text": "a few words", "split": "train"} for number in range(20)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"my: the disk is full; .* the same command continues from there"):
        prepare(manifest=tmp_path / "my.jsonl", data_dir=folder)
    assert len(list((folder / "my" / "work").rglob("*.flac"))) == 20
    grow()
    assert prepare(manifest=tmp_path / "my.jsonl", data_dir=folder).clips == 20
