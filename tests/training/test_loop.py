"""A run resumes exactly, stops cleanly, and says what went wrong."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.energy import EnergyMeter
from jax_speechlm.optim.optimizers import Group, UpdateRule
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training import loop
from jax_speechlm.training.loop import TrainingStopped, _profiler, train
from tests.core.test_energy import write as write_zone
from tests.training import tiny

ABC = CharTokenizer("abc ")
ONE_BUCKET = tiny.NOISE.replace(num_buckets=1)


def params_of(run_dir):
    return ckpt.read(ckpt.find(run_dir)).state


def lines_of(run_dir, part):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["part"] == part]


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def without_dev(source):
    """Where validation shows nothing, its programs need not be compiled."""
    return dataclasses.replace(source, dev_plan=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 8 steps, with its result."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    experiment = tiny.experiment("ctc")
    return run_dir, train(experiment, run_dir, tiny.MemorySource.make(experiment)), experiment


class Interrupted(tiny.MemorySource):
    """Sends this process a signal while a batch is being made."""

    at_step = -1

    def batch(self, plan, step):
        if step == self.at_step and plan is self.plan:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(plan, step)


def check_resumes(experiment, whole_dir, run_dir):
    """That a run which goes on from the first checkpoint of a finished one, in `whole_dir`, ends with its bits.

    The finished run keeps at least two checkpoints.
    """
    shutil.copytree(whole_dir, run_dir)
    first, *others = ckpt.find_all(run_dir)
    assert others
    for folder in others:
        shutil.rmtree(folder)
    assert ckpt.read(first).step < experiment.num_steps
    source = without_dev(tiny.MemorySource.make(experiment))
    assert train(experiment, run_dir, source).step == experiment.num_steps
    assert_same(params_of(whole_dir), params_of(run_dir))


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
    assert result.train["loss"] < lines_of(run_dir, "train")[0]["loss"]


def test_one_program_is_compiled_for_each_length_of_rows(whole, tmp_path):
    _, result, experiment = whole
    assert result.compiles == len(tiny.MemorySource.make(experiment).plan.buckets) == 1
    bucketed = experiment.replace(data=experiment.data.replace(packed=False))
    source = tiny.MemorySource.make(bucketed)
    assert train(bucketed, tmp_path, source).compiles == len(source.plan.buckets) == 2


def test_a_run_stopped_by_sigterm_resumes_bit_for_bit(whole, tmp_path):
    run_dir, _, experiment = whole
    source = Interrupted.make(experiment)
    source.at_step = 2
    stopped = train(experiment, tmp_path / "run", source)
    assert stopped.step == 3  # the step under way is finished, saved, and the run returns
    finished = train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment))
    assert finished.step == 8
    assert_same(params_of(run_dir), params_of(tmp_path / "run"))


def test_what_changes_with_the_step_resumes_bit_for_bit_too(tmp_path):
    """The Gumbel softmax's temperature halves with every step here, and two groups of parameters take turns."""
    experiment = tiny.experiment("w2v_bert", num_steps=4, data=ONE_BUCKET)
    turns = [
        Group(prefix=name, every=2, start_step=at, optimizer=UpdateRule())
        for at, name in enumerate(("encoder", "head"))
    ]
    experiment = experiment.replace(optimizer=experiment.optimizer.replace(groups=tuple(turns)))
    source = without_dev(tiny.MemorySource.make(experiment))
    train(experiment, tmp_path / "whole", source)
    interrupted = without_dev(Interrupted.make(experiment))
    interrupted.at_step = 1
    assert train(experiment, tmp_path / "run", interrupted).step == 2
    train(experiment, tmp_path / "run", source)
    assert_same(params_of(tmp_path / "whole"), params_of(tmp_path / "run"))


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
    assert [line["step"] for line in lines_of(tmp_path / "run", "train")] == [4, 8]  # 5 to 8 were taken again
    assert (tmp_path / "run" / "checkpoints" / "8.unreadable").is_dir()
    assert_same(params_of(run_dir), params_of(tmp_path / "run"))


def test_what_is_announced_as_saved_after_a_fallback_is_on_the_disk(whole, tmp_path, capsys):
    run_dir, _, experiment = whole
    shutil.copytree(run_dir, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "8").rglob("*"):
        if file.is_file():
            file.write_bytes(os.urandom(200))
    (tmp_path / "run" / "checkpoints" / "900").mkdir()
    source = Interrupted.make(experiment)
    source.at_step = 5
    stopped = train(experiment, tmp_path / "run", source)
    assert (stopped.step, stopped.stopped_by) == (6, "SIGTERM")
    assert "saved step 6" in capsys.readouterr().out
    assert ckpt.read(ckpt.find(tmp_path / "run")).step == 6
    assert train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment)).step == 8
    assert_same(params_of(run_dir), params_of(tmp_path / "run"))


class InterruptedValidation(tiny.MemorySource):
    """Sends this process a signal with the first batch of a validation, and counts these batches."""

    validated = 0

    def batch(self, plan, step):
        if plan is self.dev_plan:
            self.validated += 1
            if self.validated == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(plan, step)


def test_sigterm_ends_a_validation_saves_and_goes(whole, tmp_path, capsys):
    """First the validation of step 4, then that of the last one, then that of a run that is finished."""
    run_dir, _, experiment = whole
    for start, (step, logged) in enumerate([(4, []), (8, []), (8, [])]):
        source = InterruptedValidation.make(experiment)
        stopped = train(experiment, tmp_path / "run", source)
        assert (stopped.step, stopped.stopped_by, stopped.dev) == (step, "SIGTERM", {})
        assert source.validated == 1 < source.dev_plan.steps_per_epoch
        assert f"SIGTERM received: saved step {step}" in capsys.readouterr().out
        assert ckpt.read(ckpt.find(tmp_path / "run")).step == step
        assert lines_of(tmp_path / "run", "dev") == logged
        assert start < 2 or not stopped.train
    finished = train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment))
    assert (finished.step, finished.stopped_by) == (8, None)
    assert [line["step"] for line in lines_of(tmp_path / "run", "dev")] == [8]
    assert_same(params_of(run_dir), params_of(tmp_path / "run"))


def test_the_best_validated_step_is_kept_whatever_the_cadence_of_saving(tmp_path, monkeypatch):
    """Step 3 is the best, between the saves at 4 and 8; a loss that is not a number is not."""
    losses = iter([0.5, 0.6, 0.2, 0.3, float("nan"), 0.25, 0.4, 0.4])
    monkeypatch.setattr(loop, "validate", lambda *_: {"loss": next(losses)})
    experiment = tiny.experiment("ctc", data=ONE_BUCKET)
    experiment = experiment.replace(loop=experiment.loop.replace(eval_every=1, checkpoint_every=4, keep_last=1))
    saved = []
    save = ckpt.Checkpoints.save
    monkeypatch.setattr(
        ckpt.Checkpoints, "save", lambda self, step, *rest: saved.append(step) or save(self, step, *rest)
    )
    train(experiment, tmp_path, tiny.MemorySource.make(experiment))
    assert saved == [1, 3, 4, 8]
    kept = {folder.name: ckpt.dev_metrics(folder) for folder in ckpt.find_all(tmp_path)}
    assert kept == {"3": {"loss": 0.2}, "8": {"loss": 0.4}}


def test_a_second_ctrl_c_ends_a_run_whose_step_hangs(tmp_path):
    """A mutex that is locked twice, as a device that does not answer, never lets the interpreter's handlers run."""
    script = tmp_path / "hang.py"
    script.write_text(
        "import ctypes, os, signal, threading, time\n"
        "from jax_speechlm.training.stopping import catch_signals\n"
        "def interrupt():\n"
        "    for _ in range(2):\n"
        "        time.sleep(0.5)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "with catch_signals():\n"
        "    threading.Thread(target=interrupt, daemon=True).start()\n"
        "    mutex = ctypes.create_string_buffer(128)\n"
        "    for _ in range(2):\n"
        "        ctypes.CDLL(None).pthread_mutex_lock(mutex)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "a second Ctrl-C ends the run at once" in done.stderr


def test_a_folder_of_another_run_is_refused(whole):
    run_dir, _, experiment = whole
    other = experiment.replace(optimizer=experiment.optimizer.replace(weight_decay=0.5))
    with pytest.raises(TrainingStopped, match=r"other settings \(optimizer.weight_decay\).*another --run-dir"):
        train(other, run_dir, tiny.MemorySource.make(other))


def test_a_finished_run_is_made_longer_and_its_energy_counted(whole, tmp_path, capsys, monkeypatch):
    run_dir, _, experiment = whole
    write_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    monkeypatch.setattr("jax_speechlm.training.loop.EnergyMeter", lambda: EnergyMeter(tmp_path))
    shutil.copytree(run_dir, tmp_path / "run")
    longer = experiment.replace(num_steps=10)
    result = train(longer, tmp_path / "run", tiny.MemorySource.make(longer))
    assert result.step == 10
    schedule = experiment.optimizer.schedule
    said = capsys.readouterr().out
    assert "made longer, from 8 to 10 steps: the schedule is from now on that of a run of 10 steps" in said
    assert f"{float(schedule.build(10)(8)):.3g} (of 8 steps: {float(schedule.build(8)(8)):.3g})" in said
    assert "0 kWh, 0 kWh per hour of audio" in said
    assert lines_of(tmp_path / "run", "goodput")[-1]["joules"] == 0
    lines = lines_of(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == [4, 8, 10]
    rates = [float(schedule.build(10)(step)) for step in (8, 9)]
    assert lines[-1]["learning_rate"] == pytest.approx(np.mean(rates), rel=1e-5)
    with pytest.raises(TrainingStopped, match="num_steps, which may only grow from its 10"):
        train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment))


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
    experiment = tiny.experiment("ctc", max_bad_steps=2, data=ONE_BUCKET)
    steep = experiment.optimizer.replace(schedule=experiment.optimizer.schedule.replace(peak=1e30, warmup_steps=0))
    experiment = experiment.replace(optimizer=steep, loop=experiment.loop.replace(checkpoint_every=1))
    with pytest.raises(TrainingStopped, match="2 steps in a row had a loss or gradient that is not finite"):
        train(experiment, tmp_path, without_dev(tiny.MemorySource.make(experiment)))
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


def test_a_trace_is_written_for_tensorboard(tmp_path):
    """In a process of its own: where the TPU's compiler was loaded before (0.0.52), JAX's profiler crashes."""
    program = (
        "import sys, pathlib, jax.numpy as jnp; from jax_speechlm.training.loop import _profiler\n"
        "with _profiler((0, 1), pathlib.Path(sys.argv[1])) as before:\n"
        "    before(0); jnp.ones(3).sum().block_until_ready(); before(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=300)
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_predictions_that_collapse_raise_an_alarm(tmp_path, capsys):
    """What is masked in white noise cannot be told from its context: a model learns only how frequent each code is."""
    experiment = tiny.experiment("best_rq", num_steps=40, data=ONE_BUCKET)
    experiment = experiment.replace(loop=experiment.loop.replace(log_every=10, eval_every=40))
    train(experiment, tmp_path, without_dev(tiny.MemorySource.make(experiment)))
    assert "predictions have collapsed" in capsys.readouterr().out


def test_a_step_that_hangs_shows_where(tmp_path):
    """In a process of its own: the stacks go to the real stderr, which pytest would hide."""
    script = tmp_path / "hang.py"
    script.write_text(
        "import sys, time\n"
        "from jax_speechlm.training.loop import _stacks_if_hung\n"
        "def stuck_reader():\n"
        "    time.sleep(1.5)\n"
        "with _stacks_if_hung(0.5):\n"
        "    stuck_reader()\n"
        "print('the steps are over', file=sys.stderr, flush=True)\n"
        "with _stacks_if_hung(None):\n"
        "    time.sleep(1)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    during, after = done.stderr.split("the steps are over")
    assert "in stuck_reader" in during
    assert during.count("Timeout") >= 2
    assert "Timeout" not in after
