"""Checkpoints are whole or absent, go to any mesh, and say what is wrong with them."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.training import checkpoints as ckpt
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
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.json").write_bytes(b"\x00\xff")
    (tmp_path / "b").mkdir()
    ckpt.unpack_files(ckpt.pack_files(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == b"\x00\xff"
    with pytest.raises(ckpt.CheckpointError, match="refused"):
        ckpt.unpack_files({"../evil": ""}, tmp_path / "b")
