"""A run resumes exactly, stops cleanly, and says what went wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines.tokenizers import CharTokenizer
from jax_speechlm.experiment import Start
from jax_speechlm.models.transformer import TransformerConfig
from jax_speechlm.objectives.causal_lm import CausalLM
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import TrainingStopped, _profiler, _take_over, train
from jax_speechlm.training.source import tokenizer_files
from jax_speechlm.training.state import make_trainer
from tests.training import tiny

ABC = CharTokenizer("abc ")


def params_of(run_dir):
    return ckpt.read(ckpt.find(run_dir)).state


def lines_of(run_dir, part):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["part"] == part]


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 8 steps, with its result."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    experiment = tiny.experiment("ctc")
    profiled = experiment.replace(cadence=experiment.cadence.replace(profile_steps=(6, 7)))
    return run_dir, train(profiled, run_dir, tiny.MemorySource.make(experiment)), experiment


class Interrupted(tiny.MemorySource):
    """Sends this process a signal while a batch is being made."""

    at_step = -1

    def batch(self, plan, step):
        if step == self.at_step and plan is self.plan:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(plan, step)


def test_a_run_logs_validates_and_saves(whole):
    run_dir, result, experiment = whole
    assert result.step == experiment.num_steps
    assert [line["step"] for line in lines_of(run_dir, "train")] == [4, 8]
    last = lines_of(run_dir, "train")[-1]
    for name in ("loss", "learning_rate", "grad_norm", "audio_seconds_per_second", "input_wait_share"):
        assert np.isfinite(last[name])
    assert 0 < last["useful_mfu"] < last["mfu"]
    assert 0 < last["padding_share"] < 1
    assert last["eta_seconds"] == 0
    assert {"loss", "wer", "cer"} <= set(lines_of(run_dir, "dev")[-1])
    assert lines_of(run_dir, "start")[0]["seconds_to_first_step"] > 0
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert list((run_dir / "tensorboard").rglob("*.xplane.pb"))
    assert result.train["loss"] < lines_of(run_dir, "train")[0]["loss"]


def test_one_program_is_compiled_for_each_bucket(whole):
    _, result, experiment = whole
    assert result.compiles == len(tiny.MemorySource.make(experiment).plan.buckets) == 2


def test_a_run_stopped_by_sigterm_resumes_bit_for_bit(whole, tmp_path):
    run_dir, _, experiment = whole
    source = Interrupted.make(experiment)
    source.at_step = 2
    stopped = train(experiment, tmp_path / "run", source)
    assert stopped.step == 3  # the step under way is finished, saved, and the run returns
    finished = train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment))
    assert finished.step == 8
    assert_same(params_of(run_dir), params_of(tmp_path / "run"))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole, tmp_path, caplog):
    run_dir, _, experiment = whole
    shutil.copytree(run_dir, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "8" / "state"
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    result = train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment))
    assert result.step == 8
    assert "Trying the checkpoint before it" in caplog.text
    assert lines_of(tmp_path / "run", "train")[-1]["step"] == 8
    assert len(lines_of(tmp_path / "run", "train")) == 3  # steps 5 to 8 were taken again


def test_a_folder_of_another_run_is_refused(whole):
    run_dir, _, experiment = whole
    other = experiment.replace(optimizer=experiment.optimizer.replace(weight_decay=0.5))
    with pytest.raises(TrainingStopped, match=r"other settings \(optimizer.weight_decay\).*another --run-dir"):
        train(other, run_dir, tiny.MemorySource.make(other))


def test_a_finished_run_is_validated_again(whole):
    run_dir, result, experiment = whole
    again = train(experiment, run_dir, tiny.MemorySource.make(experiment))
    assert again.step == result.step
    assert again.dev == result.dev


def test_changed_data_are_refused(whole):
    run_dir, _, experiment = whole
    with pytest.raises(TrainingStopped, match="the data sets have changed"):
        train(experiment, run_dir, tiny.MemorySource.make(experiment, utterances=16))


def test_steps_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path):
    experiment = tiny.experiment("ctc", max_bad_steps=2)
    steep = experiment.optimizer.replace(schedule=experiment.optimizer.schedule.replace(peak=1e30, warmup_steps=0))
    experiment = experiment.replace(optimizer=steep, cadence=experiment.cadence.replace(checkpoint_every=1))
    with pytest.raises(TrainingStopped, match="2 steps in a row had a loss or gradient that is not finite"):
        train(experiment, tmp_path, tiny.MemorySource.make(experiment))
    assert ckpt.find(tmp_path).is_dir()


@pytest.mark.parametrize(
    ("begin", "end", "calls"),
    [(0, 9, ["start 2", "stop 4"]), (3, 9, ["start 3", "stop 4"]), (0, 4, ["start 2", "stop"]), (5, 9, [])],
)
def test_a_trace_holds_the_steps_asked_for_and_always_ends(begin, end, calls, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(f"start {step}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop" if step == end - 1 else f"stop {step}"))
    with _profiler((2, 4), tmp_path) as before:
        for step in range(begin, end):
            before(step)
    assert seen == calls


def test_predictions_that_collapse_raise_an_alarm(tmp_path, capsys):
    """What is masked in white noise cannot be told from its context: a model learns only how frequent each code is."""
    experiment = tiny.experiment("best_rq", num_steps=40)
    experiment = experiment.replace(cadence=experiment.cadence.replace(log_every=10, eval_every=40))
    train(experiment, tmp_path, tiny.MemorySource.make(experiment))
    assert "predictions have collapsed" in capsys.readouterr().out


def test_finetuning_takes_the_encoder_over_and_nothing_else(tmp_path):
    pretraining = tiny.experiment("best_rq", num_steps=1)
    train(pretraining, tmp_path / "pretrain", tiny.MemorySource.make(pretraining))
    finetuning = tiny.experiment("ctc", num_steps=1, start=Start(checkpoint=str(tmp_path / "pretrain")))
    still = finetuning.optimizer.replace(frozen=("encoder",), ema_decay=0.0)
    finetuning = finetuning.replace(optimizer=still)
    train(finetuning, tmp_path / "finetune", tiny.MemorySource.make(finetuning))
    pretrained, _ = ckpt.read_params(tmp_path / "pretrain")
    finetuned = params_of(tmp_path / "finetune")["params"]
    assert_same(pretrained["encoder"], finetuned["encoder"])
    assert set(finetuned) == {"encoder", "head"}


def test_a_model_of_another_shape_cannot_take_over(whole, tmp_path):
    run_dir, _, experiment = whole
    wider = experiment.replace(model=experiment.model.replace(dim=32), start=Start(checkpoint=str(run_dir)))
    with pytest.raises(ckpt.CheckpointError, match=r"has shape .* this model needs"):
        train(wider, tmp_path, tiny.MemorySource.make(wider))


def test_a_transformer_is_not_taken_over_under_another_tokenizer(tmp_path):
    """Two alphabets of one size: the table fits, but every row of it means another character."""
    run = ckpt.Checkpoints(tmp_path)
    experiment = tiny.experiment("ctc")
    objective = CausalLM().build(TransformerConfig(dim=8, num_layers=1, num_heads=1, num_kv_heads=1), None, ABC)
    with jax.set_mesh(meshes.make_mesh(experiment.mesh)):
        state = make_trainer(objective, experiment.optimizer, 1, 0, meshes.make_mesh(experiment.mesh)).init(
            jax.random.key(0)
        )
    run.save(1, state, {"experiment": {}, "tokenizer": tokenizer_files(ABC), "plan": "", "step": 1})
    run.wait()
    run.close()
    start = Start(checkpoint=str(tmp_path))
    assert_same(_take_over(start, state.params, ABC), state.params)
    with pytest.raises(ckpt.CheckpointError, match=r"another tokenizer: set --data\.tokenizer"):
        _take_over(start, state.params, CharTokenizer("xyz "))


def test_a_step_that_hangs_shows_where(tmp_path):
    """In a process of its own: the stacks go to the real stderr, which pytest would hide."""
    script = tmp_path / "hang.py"
    script.write_text(
        "import time\n"
        "from jax_speechlm.training.loop import _expect_next_step, _stacks_if_hung\n"
        "def stuck_reader():\n"
        "    time.sleep(1.5)\n"
        "with _stacks_if_hung(0.5):\n"
        "    stuck_reader()\n"
        "with _stacks_if_hung(None):\n"
        "    time.sleep(0.1)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    assert "in stuck_reader" in done.stderr
    assert done.stderr.count("Timeout") == 2
