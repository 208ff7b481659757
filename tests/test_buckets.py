"""Data, runs and reports in buckets: everything that folders can do, on servers that speak as S3 and GCS do."""

import json
import sys

import jax
import numpy as np
import pytest
import soundfile
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from data_pipelines.core import paths
from data_pipelines.core.errors import DataError
from data_pipelines.storage import index, records
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.parallel.compilation_cache import compilation_cache_of
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment, Speech
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import train
from jax_speechlm.training.state import TrainState
from tests import buckets
from tests.training import tiny


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, tmp_path_factory):
    """The URL of a bucket, and a cache of its own."""
    with buckets.serve(request.param) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_SPEECHLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield url


EXPERIMENT = tiny.experiment(mesh=MeshShape())


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The directory of a run that nothing went wrong with."""
    run_dir = tmp_path_factory.mktemp("disk") / "run"
    train(EXPERIMENT, run_dir, tiny.MemorySource.make(EXPERIMENT))
    return run_dir


@pytest.fixture(scope="module")
def in_bucket(bucket):
    """The URL of the same run, which ended as if killed two steps behind a checkpoint, and went on from there."""

    class Killed(tiny.MemorySource):
        def batches(self, first_step, num_steps):
            return super().batches(first_step, 6)

    with pytest.raises(StopIteration):
        train(EXPERIMENT, f"{bucket}/run", Killed.make(EXPERIMENT))
    assert train(EXPERIMENT, f"{bucket}/run", tiny.MemorySource.make(EXPERIMENT)).step == 8
    return f"{bucket}/run"


def test_a_killed_run_in_a_bucket_ends_as_one_on_a_disk_does(in_bucket, on_disk):
    here, there = (ckpt.read(ckpt.find(place)) for place in (on_disk, in_bucket))
    assert here.step == there.step == 8
    jax.tree.map(np.testing.assert_array_equal, here.state, there.state)
    assert here.meta == there.meta
    place = paths.as_path(in_bucket)
    assert Experiment.read(place / "config.json") == Experiment.read(on_disk / "config.json")
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["part"] == "train"] == [4, 8]
    assert sum(line["part"] == "start" for line in lines) == 2
    assert all("tfevents" in file.name and file.stat().length for file in (place / "tensorboard").iterdir())
    assert sorted(child.name for child in (place / "checkpoints").iterdir() if child.name.isdigit()) == ["4", "8"]


def test_a_save_that_was_cut_short_is_no_checkpoint(in_bucket):
    (paths.as_path(in_bucket) / "checkpoints" / "8" / "commit_success.txt").unlink()
    assert ckpt.find(in_bucket).name == "4"
    assert ckpt.Checkpoints(in_bucket).steps == [4]


def test_an_unreadable_checkpoint_in_a_bucket_is_set_aside(bucket):
    state = TrainState(np.int32(1), {"weight": np.arange(64, dtype=np.float32)}, (), {}, np.int32(0), np.int32(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)
    checkpoints = ckpt.Checkpoints(f"{bucket}/aside")
    for step in (1, 3):
        checkpoints.save(step, state, {"step": step}, {"loss": 0.5})
    checkpoints.close()
    place = paths.as_path(bucket) / "aside" / "checkpoints"
    (place / "3" / "meta" / "metadata").write_bytes(b"\xff")
    again = ckpt.Checkpoints(f"{bucket}/aside")
    assert again.restore(shapes, lambda meta: None).step == 1
    assert (place / "3.unreadable" / "meta" / "metadata").read_bytes() == b"\xff"
    assert not (place / "3").exists()
    again.save(2, state, {"step": 2})
    again.close()
    assert ckpt.read(ckpt.find(f"{bucket}/aside")).step == 2


def test_compiled_programs_of_a_run_are_in_its_bucket(bucket, monkeypatch):
    chosen = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    events = []

    def record(name, **_):
        events.append(name)

    jax.monitoring.register_event_listener(record)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        for _ in range(2):
            events.clear()
            with compilation_cache_of(paths.as_path(f"{bucket}/compiling")):
                assert float(jax.jit(lambda x: x * 2.75 + 19)(2.0)) == 24.5
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)
        reset_cache()
        jax.monitoring.unregister_event_listener(record)
    assert events.count("/jax/compilation_cache/compile_requests_use_cache") == 1
    assert events.count("/jax/compilation_cache/cache_hits") == 1
    (file,) = (paths.as_path(bucket) / "compiling" / "compiled").iterdir()
    assert file.name.startswith("jit__lambda")


def test_prepare_train_and_eval_by_url_alone(bucket, in_bucket, tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(0, 0.1, 8000 + 400 * number), 16_000)
        split = ("train", "train", "dev", "test")[number % 4]
        rows.append(json.dumps({"audio": f"{number}.wav", "text": "abc"[: number % 3 + 1], "split": split}))
    (tmp_path / "noises.jsonl").write_text("\n".join(rows))
    prepare = ["prepare", f"--manifest={tmp_path / 'noises.jsonl'}", f"--data-dir={bucket}/data"]
    assert cli.main([argument.replace(bucket, str(tmp_path)) for argument in prepare]) == 0
    assert cli.main(prepare) == 0
    for file in tmp_path.glob("*.wav"):
        file.unlink()
    assert cli.main(prepare) == 0  # finds the set there, and asks for no audio
    here, there = (index.read_sets(place, ["noises"], "dev") for place in (tmp_path / "data", f"{bucket}/data"))
    assert here.fingerprint == there.fingerprint
    readers = records.RecordReader(here), records.RecordReader(there)
    assert [readers[0].read(row) for row in range(6)] == [readers[1].read(row) for row in range(6)]

    data = Speech(sets=("noises",), data_dir=f"{bucket}/data", num_buckets=1, seconds_per_batch=8.0)
    (tmp_path / "tiny.json").write_text(EXPERIMENT.replace(data=data, num_steps=2).model_dump_json())
    run = [f"--config={tmp_path / 'tiny.json'}", f"--run-dir={bucket}/ctc", f"--from={in_bucket}"]
    assert cli.main(["finetune", *run]) == 0
    assert cli.main(["eval", f"{bucket}/ctc", "--sets", "noises", f"--data-dir={bucket}/data"]) == 0
    report = paths.as_path(bucket) / "ctc/eval/noises-test-greedy/report.json"
    assert json.loads(report.read_text())["wer"]["utterances"] == 6
    assert cli.main(["compare", str(report), str(report)]) == 0
    assert "error:" not in capsys.readouterr().err


def test_a_bucket_without_its_package_or_of_another_kind_is_an_error_that_says_so(monkeypatch):
    with pytest.raises(DataError, match="abc:// is not supported; name a folder"):
        paths.as_path("abc://bucket/x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"s3:// needs s3fs: pip install 'jax_speechlm\[s3\]'"):
        paths.as_path("s3://bucket/x")


def test_a_bucket_that_cannot_be_reached_is_said_at_once(monkeypatch, tmp_path, capsys):
    s3fs = pytest.importorskip("s3fs", reason="pip install -e '.[dev]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nobody listens
    (tmp_path / "my.jsonl").touch()
    s3fs.S3FileSystem.clear_instance_cache()
    assert cli.main(["prepare", f"--manifest={tmp_path / 'my.jsonl'}", "--data-dir=s3://nowhere/data"]) == USER_ERROR
    assert "error: s3://nowhere/data: the bucket cannot be reached" in capsys.readouterr().err


def test_a_url_survives_pathlib_and_folders_stay_folders():
    pytest.importorskip("s3fs", reason="pip install -e '.[dev]'")
    from pathlib import Path

    assert str(paths.as_path(Path("s3://bucket/a") / "b")) == "s3://bucket/a/b"
    for folder in ("data", "/data/x", "C:/data", "a:b/c", "./s3:x"):
        assert paths.as_path(folder) == Path(folder)
        assert not paths.is_url(paths.as_path(folder))
