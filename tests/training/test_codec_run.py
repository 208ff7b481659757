"""A codec as a run: its codebook moves by averages that a checkpoint holds, so that it resumes exactly."""

import itertools

import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.training.loop import train
from tests.training import tiny
from tests.training.test_loop import ONE_BUCKET, check_resumes, lines_of, params_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 4 steps, without discriminators."""
    experiment = tiny.experiment("codec", num_steps=4, data=ONE_BUCKET)
    experiment = experiment.replace(
        objective=experiment.objective.replace(adversarial=None),
        loop=experiment.loop.replace(log_every=1, checkpoint_every=1, keep_last=4),
    )
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, train(experiment, run_dir, tiny.MemorySource.make(experiment)), experiment


def test_the_codebook_is_placed_at_frames_and_follows_them(whole):
    run_dir, result, _ = whole
    assert np.isfinite(result.dev["loss"])
    assert {"mel", "commitment", "code_entropy", "codes_used"} <= result.dev.keys()
    steps = [
        params_of(run_dir / "checkpoints" / str(step))["params"]["autoencoder"]["quantizer"] for step in (1, 2, 3, 4)
    ]
    for before, after in itertools.pairwise(steps):
        assert (before["vectors"] != after["vectors"]).any()
    for step in steps:  # the shares of all codes
        assert step["count"].min() >= 0
        used = step["count"] > 0.1 / len(step["count"])
        np.testing.assert_allclose(
            step["vectors"][used], step["total"][used] / step["count"][used, None], rtol=1e-4, atol=1e-5
        )
    placements = [line["code_placements"] for line in lines_of(run_dir, "train")]
    assert placements[0] > 0


def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path):
    run_dir, _, experiment = whole
    check_resumes(experiment, run_dir, tmp_path / "run")


def test_the_trained_codec_encodes_and_decodes(whole):
    model = jax_speechlm.load(whole[0])
    samples = np.random.default_rng(0).integers(-9000, 9000, 1000).astype(np.int16)
    ids = model.encode_codes([samples])
    assert [len(each) for each in ids] == [16]
    assert len(model.decode_codes(ids)[0]) == 1024
