"""Sweeps draw settings within their ranges, go on after an interruption, and report their trials."""

import os
import signal

import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.training import loop, sweep
from jax_speechlm.training.sweep import Range, parse_range
from tests.training import tiny

PEAK = parse_range("optimizer.schedule.peak=1e-4..1e-2:log")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.dim=16,32", Range("model.dim", (16, 32))),
        ("model.num-layers=2..6", Range("model.num_layers", low=2, high=6)),
        ("optimizer.weight_decay=0..0.5", Range("optimizer.weight_decay", low=0, high=0.5)),
        ("optimizer.schedule.peak=1e-4..1e-2:log", Range("optimizer.schedule.peak", low=1e-4, high=1e-2, log=True)),
        ("optimizer.kind=adam,sgd", Range("optimizer.kind", ("adam", "sgd"))),
        ("frontend.augment.crop_seconds=None,2.5", Range("frontend.augment.crop_seconds", (None, 2.5))),
    ],
)
def test_ranges_are_parsed(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "peak", "=1..2", "a=", "a=2..1", "a=0..1:log", "a=x..y", "a=1..2..3", "a=1:log"])
def test_other_texts_are_errors_that_show_the_form(text):
    with pytest.raises(DataError, match="--vary"):
        parse_range(text)


class Interrupted(tiny.MemorySource):
    """Sends this process a signal while the batch of a step is being made, once."""

    at_step = None

    def batch(self, plan, step):
        if step == Interrupted.at_step and plan is self.plan:
            Interrupted.at_step = None
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(plan, step)


@pytest.fixture
def experiment(monkeypatch):
    """An experiment whose data are in memory."""
    experiment = tiny.experiment("ctc")
    monkeypatch.setattr(loop, "open_source", lambda experiment: Interrupted.make(experiment))
    return experiment.replace(num_steps=4, loop=experiment.loop.replace(eval_every=2, checkpoint_every=2, log_every=2))


def test_a_sweep_goes_on_with_the_trial_that_was_interrupted(experiment, tmp_path, capsys):
    Interrupted.at_step = 2
    with pytest.raises(DataError, match="SIGTERM received: the same command goes on with trial 0000"):
        sweep.run(experiment, tmp_path, [PEAK], 2)
    first = capsys.readouterr().out
    study = sweep.run(experiment, tmp_path, [PEAK], 2)
    assert first.splitlines()[0] in capsys.readouterr().out  # the same settings
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[2, 4], [2, 4]]
    best = min(trial.value for trial in study.trials)
    table = sweep.write_report(study, tmp_path, "loss")
    assert f"{best:.4g}" in table.splitlines()[2]
    assert (tmp_path / "trials.md").read_text() in table + "\n"
    assert (tmp_path / "parallel.html").stat().st_size > 1000
    assert sweep.run(experiment, tmp_path, [PEAK], 2).trials[1].value == study.trials[1].value  # complete: no more

    with pytest.raises(DataError, match="another --out"):
        sweep.run(experiment, tmp_path, [PEAK], 2, metric="wer")


def test_settings_that_do_not_fit_together_are_a_failed_trial(experiment, tmp_path, capsys):
    study = sweep.run(experiment, tmp_path, [parse_range("model.num_heads=3,5")], 1)
    assert [trial.state.name for trial in study.trials] == ["FAIL"]
    assert "trial 0000: " in capsys.readouterr().out
    assert "parallel" not in sweep.write_report(study, tmp_path, "loss")


@pytest.mark.parametrize(
    ("vary", "metric", "message"),
    [
        ([], "loss", "at least one --vary"),
        (["model.width=1..2"], "loss", "model.width: an experiment has no such setting; here are .*dim"),
        (["models.dim=1..2"], "loss", "no such setting; here are .*model"),
        (["seed=1..2"], "accuracy", "--metric accuracy: a validation of this run has .*loss"),
    ],
)
def test_what_cannot_be_swept_says_why(experiment, tmp_path, vary, metric, message):
    with pytest.raises(DataError, match=message):
        sweep.run(experiment, tmp_path, [parse_range(text) for text in vary], 1, metric)
