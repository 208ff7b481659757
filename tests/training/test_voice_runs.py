"""Models of speech synthesis as runs: each resumes exactly."""

import pytest

from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.training.loop import train
from tests.training import tiny
from tests.training.test_loop import ONE_BUCKET, check_resumes, without_dev


@pytest.mark.parametrize("task", ["tts", "tacotron", "mel_restoration"])
def test_a_stopped_run_resumes_bit_for_bit(task, tmp_path):
    experiment = tiny.experiment(task, mesh=MeshShape(), num_steps=2, data=ONE_BUCKET)
    experiment = experiment.replace(loop=experiment.loop.replace(checkpoint_every=1))
    train(experiment, tmp_path / "whole", without_dev(tiny.MemorySource.make(experiment)))
    check_resumes(experiment, tmp_path / "whole", tmp_path / "run")
