"""Runs say when they overfit or end too soon, and end early where asked to."""

import dataclasses

import jax
import numpy as np
import pytest

from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.fit import LossHistory
from jax_speechlm.training.loop import train
from tests.training import tiny

FALLING = [(step, 10 / step, 12 / step) for step in range(10, 90, 10)]
TURNING = [(10, 3.0, 3.2), (20, 2.0, 2.5), (30, 1.0, 2.6), (40, 0.5, 3.0)]


def test_a_dev_loss_that_rises_while_training_falls_is_overfitting():
    message = LossHistory(TURNING).overfitting()
    assert "lowest at step 20 (2.5) and is 3 now" in message
    assert "fell from 2 to 0.5" in message
    assert "training █▅▂▁" in message


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [(10, 3.0, 3.0)],
        FALLING,
        [(10, 3.0, 3.0), (20, 2.9, 3.05)],  # rises by less than is notable
        [(10, 1.0, 2.0), (20, 1.5, 3.0)],  # training rises too: it diverges, which is another fault
    ],
)
def test_what_is_no_overfitting(losses):
    assert LossHistory(losses).overfitting() is None


def test_a_dev_loss_that_still_falls_asks_for_more_steps():
    message = LossHistory(FALLING).underfitting()
    assert "from 0.2 to 0.15 over the last quarter" in message
    assert "--num-steps 160" in message
    flat = [(step, 1.0, 1 + 1 / step**2) for step in range(10, 90, 10)]
    assert LossHistory(flat).underfitting() is None
    assert LossHistory(TURNING).underfitting() is None
    assert LossHistory(FALLING[:3]).underfitting() is None


def test_losses_that_are_not_finite_are_left_out():
    history = LossHistory()
    for step, dev in enumerate([1.0, float("nan"), None, float("inf")]):
        history.add(step, 1.0, dev)
    assert len(history.validations) == 1


def test_patience_counts_validations_since_the_lowest_loss():
    history = LossHistory(TURNING)
    assert [history.is_exhausted(patience) for patience in (1, 2, 3, None)] == [True, True, False, False]
    assert not LossHistory().is_exhausted(1)


def learns_nothing(patience):
    """Returns an experiment whose dev loss never falls after its first validation, and its source."""
    experiment = tiny.experiment("ctc", data=tiny.NOISE.replace(num_buckets=1))
    schedule = experiment.optimizer.schedule.replace(peak=1e-30)
    loop = experiment.loop.replace(eval_every=2, checkpoint_every=100, log_every=2, patience=patience)
    experiment = experiment.replace(optimizer=experiment.optimizer.replace(schedule=schedule), loop=loop)
    return experiment, tiny.MemorySource.make(experiment)


def test_a_run_ends_early_stays_ended_and_goes_on_with_more_patience(tmp_path):
    experiment, source = learns_nothing(1)
    result = train(experiment, tmp_path / "run", source)
    assert (result.step, result.ended_early, result.stopped_by) == (4, True, None)
    again = train(experiment, tmp_path / "run", source)
    assert (again.step, again.ended_early) == (4, True)
    patient, _ = learns_nothing(2)
    assert train(patient, tmp_path / "run", source).step == 6
    whole = train(learns_nothing(None)[0].replace(num_steps=8), tmp_path / "whole", source)
    assert (whole.step, whole.ended_early) == (8, False)
    rest = train(learns_nothing(None)[0].replace(num_steps=8), tmp_path / "run", source)
    assert rest.step == 8
    first, second = (ckpt.read(ckpt.find(tmp_path / name)) for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, first.state, second.state)
    assert [step for step, *_ in second.meta["losses"]] == [2, 4, 6, 8]


def test_a_caller_ends_a_run_by_its_validation(tmp_path):
    experiment, source = learns_nothing(None)
    seen = {}

    def ends(step, metrics):
        seen[step] = metrics["loss"]
        return step == 4

    result = train(experiment, tmp_path / "run", dataclasses.replace(source), ends)
    assert (result.step, result.ended_early, sorted(seen)) == (4, True, [2, 4])
