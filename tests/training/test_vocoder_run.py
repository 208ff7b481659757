"""A vocoder as a run: its discriminators start late, with an optimizer of their own, and it resumes exactly."""

import itertools

import jax
import numpy as np
import pytest

from jax_speechlm.inference.vocode import Vocoder
from jax_speechlm.optim.optimizers import Group, UpdateRule, WarmupCosine
from jax_speechlm.training.loop import train
from tests.training import tiny
from tests.training.test_loop import ONE_BUCKET, assert_same, check_resumes, lines_of, params_of

FIRST = 2  # step of the discriminators


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 4 steps."""
    experiment = tiny.experiment("vocoder", num_steps=4, data=ONE_BUCKET)
    own = UpdateRule(schedule=WarmupCosine(peak=1e-3, warmup_steps=1), b1=0.8, b2=0.99)
    groups = (Group(prefix="discriminators", start_step=FIRST, optimizer=own),)
    adversarial = experiment.objective.adversarial.replace(start_step=FIRST)
    experiment = experiment.replace(
        objective=experiment.objective.replace(adversarial=adversarial),
        optimizer=experiment.optimizer.replace(groups=groups),
        loop=experiment.loop.replace(log_every=1, checkpoint_every=1, keep_last=4),
    )
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, train(experiment, run_dir, tiny.MemorySource.make(experiment)), experiment


def test_discriminators_learn_from_their_first_step_on(whole):
    run_dir, result, _ = whole
    assert np.isfinite(result.dev["loss"])
    assert {"convergence", "log_magnitude", "mel"} <= result.dev.keys()
    steps = [params_of(run_dir / "checkpoints" / str(step))["params"] for step in (1, 2, 3)]
    assert_same(steps[0]["discriminators"], steps[1]["discriminators"])
    assert any(jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), *(s["discriminators"] for s in steps[1:]))))
    for before, after in itertools.pairwise(steps):
        assert (before["generator"]["head"]["kernel"] != after["generator"]["head"]["kernel"]).any()
        np.testing.assert_array_equal(before["generator"]["mean"], after["generator"]["mean"])
    losses = [line["discriminator"] for line in lines_of(run_dir, "train")]
    assert losses[:FIRST] == [0, 0]
    assert min(losses[FIRST:]) > 0


def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path):
    run_dir, _, experiment = whole
    check_resumes(experiment, run_dir, tmp_path / "run")


def test_the_trained_vocoder_has_no_discriminators(whole):
    vocoder = Vocoder.load(whole[0])
    assert set(vocoder.run.params) == {"generator"}
    assert len(vocoder.vocode([np.full((9, 16), -4.0, np.float32)])[0]) == 9 * 64
