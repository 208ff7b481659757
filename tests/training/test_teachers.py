"""A distillation as a run: its checkpoints name the teachers and hold only the student, and resume exactly."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.tree import paths
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.objectives.distillation import GROUP, Distillation, Teacher
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import TrainingStopped, train
from jax_speechlm.training.runs import SavedRuns, resolve, task_of_run
from jax_speechlm.training.state import make_trainer
from tests.evaluation.runs import write_run
from tests.training import tiny
from tests.training.test_loop import ONE_BUCKET, without_dev
from tests.training.test_state import ONE, trainer_on

LETTERS = CharTokenizer(tiny.LETTERS)
PLAIN = tiny.experiment("ctc", mesh=MeshShape(), num_steps=2, data=ONE_BUCKET)
WIDE = PLAIN.replace(model=PLAIN.model.replace(dim=32, num_layers=1))


def distilled(teacher, **changes) -> Experiment:
    objective = Distillation(teachers=(Teacher(checkpoint=str(teacher), layers=((2, 1),)),))
    return PLAIN.replace(objective=objective, **changes)


def source(experiment: Experiment):
    return without_dev(tiny.source(experiment))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("teacher"), WIDE, LETTERS)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """An uninterrupted run of two steps."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(distilled(teacher), run_dir, source(distilled(teacher)))
    return run_dir


def test_a_checkpoint_names_its_teachers_and_holds_the_student_alone(whole, teacher):
    saved = ckpt.read(ckpt.find(whole))
    (named,) = saved.meta["experiment"]["objective"]["teachers"]
    assert named["checkpoint"] == str(teacher / "checkpoints" / "0")
    assert named["model"]["dim"] == 32
    assert set(saved.state["params"][GROUP]) == {"maps"}
    assert GROUP not in "".join(name for name in paths(saved.state["ema"]) if "teachers" in name)
    params, _ = ckpt.read_params(whole)
    assert set(params) == {"encoder", "head"}
    assert "distillation" in (whole / "config.json").read_text()


def test_a_stopped_run_resumes_bit_for_bit_and_reads_its_teachers_again(whole, teacher, tmp_path):
    experiment = distilled(teacher)
    half = experiment.replace(loop=experiment.loop.replace(checkpoint_every=1))
    train(half, tmp_path / "run", source(half))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    assert train(half, tmp_path / "run", source(half)).step == 2
    one, other = (ckpt.read(ckpt.find(each)).state for each in (whole, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_was_distilled_is_used_like_any_recognizer_when_the_teacher_is_gone(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    meta = tmp_path / "run" / "checkpoints" / "2" / "meta" / "metadata"
    text = json.loads(meta.read_text())
    text["experiment"]["objective"]["teachers"][0]["checkpoint"] = "/nowhere"
    meta.write_text(json.dumps(text))
    assert task_of_run(tmp_path / "run").name == "ctc"
    recognizer = Recognizer.load(tmp_path / "run")
    batch = next(tiny.source(PLAIN).dev_batches())
    assert len(recognizer.recognize(iter([batch]))) == (batch["example_id"] >= 0).sum() > 0
    experiment = distilled(tmp_path / "run")
    with pytest.raises(TrainingStopped, match=r"other settings \(.*objective.teachers.0.checkpoint"):
        train(experiment, whole, source(experiment))


def test_teachers_are_arguments_of_the_compiled_step():
    """Other teachers, another loss, and no new program; and their parameters stay as they are."""
    trainer, source, mesh = trainer_on(*ONE, tiny.experiment("distillation"))
    with jax.set_mesh(mesh):
        batch = meshes.shard_batch(mesh, source.batch(source.plan, 0))
        found = []
        for factor in (1.0, 3.0):
            state = trainer.init(jax.random.key(0))
            params = state.params | {GROUP: jax.tree.map(functools.partial(jnp.multiply, factor), state.params[GROUP])}
            before = jax.device_get(params[GROUP]["teachers"])
            state, metrics = trainer.step(state._replace(params=params), batch)
            found.append(float(metrics["divergence"][0]))
            jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params[GROUP]["teachers"]))
            assert not any("teachers" in name for name in paths(state.ema))
    assert abs(found[0] - found[1]) > 1e-2
    assert trainer.step._cache_size() == 1
    adam = next(part for part in trainer.shapes.opt_state if hasattr(part, "mu"))
    assert set(adam.mu[GROUP]) == {"maps"}


def test_teachers_that_do_not_fit_are_named(teacher, tmp_path):
    other = write_run(tmp_path / "other", WIDE, CharTokenizer("wxyz"))
    experiment = distilled(other, num_steps=1)
    with pytest.raises(ckpt.CheckpointError, match="this teacher has another tokenizer than its student"):
        train(experiment, tmp_path / "run", source(experiment))
    speech_only = write_run(tmp_path / "best_rq", tiny.experiment("best_rq"), None)
    with pytest.raises(ckpt.CheckpointError, match="was trained by best_rq, its student is by ctc"):
        resolve(distilled(speech_only))
    wrong = Teacher(checkpoint=str(teacher), model=PLAIN.model, frontend=PLAIN.frontend)
    experiment = PLAIN.replace(objective=Distillation(teachers=(wrong,)), num_steps=1)
    with pytest.raises(ckpt.CheckpointError, match="leave model and frontend out, and they are read from it"):
        train(experiment, tmp_path / "run", source(experiment))


def test_a_student_may_teach_in_its_turn(whole):
    """It is taken without the maps that it learnt beside it."""
    experiment = resolve(distilled(whole))
    objective = experiment.objective.build(experiment.model, experiment.frontend, LETTERS)
    mesh = meshes.make_mesh(MeshShape(), jax.devices()[:1])
    trainer = make_trainer(objective, experiment.optimizer, 1, 0, mesh)
    found = objective.load_borrowed(trainer.shapes.params, LETTERS, SavedRuns())[GROUP]["teachers"]["0"]
    assert set(found) == {"encoder", "head"}
    jax.tree.map(np.testing.assert_array_equal, found, ckpt.read_params(whole)[0])
