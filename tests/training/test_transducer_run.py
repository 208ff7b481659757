"""A transducer as a run: it resumes exactly, and begins with the encoder and the output layer of a CTC run."""

import jax
import numpy as np

from jax_speechlm.nn import functional
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.loop import train
from jax_speechlm.training.runs import LoadedRun
from jax_speechlm.training.warm_start import take_over_all
from tests.evaluation.runs import write_run
from tests.training import tiny
from tests.training.test_loop import ONE_BUCKET, check_resumes, without_dev


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    experiment = tiny.experiment("transducer", mesh=MeshShape(), num_steps=2, data=ONE_BUCKET)
    experiment = experiment.replace(loop=experiment.loop.replace(checkpoint_every=1))
    train(experiment, tmp_path / "whole", without_dev(tiny.MemorySource.make(experiment)))
    check_resumes(experiment, tmp_path / "whole", tmp_path / "run")


def test_encoder_and_output_layer_of_a_ctc_run_are_taken_over(tmp_path):
    tokenizer = tiny.CharTokenizer(tiny.LETTERS)
    checkpoint = write_run(tmp_path / "ctc", tiny.experiment("ctc"), tokenizer)
    experiment = tiny.experiment("transducer")
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    params, ctc = functional.init(objective.make, jax.random.key(7)), LoadedRun.read(checkpoint).params
    for groups, taken in ((None, ("encoder",)), (("encoder", "head"), ("encoder", "head"))):
        start = InitFrom(checkpoint=str(checkpoint), groups=groups)
        begun, messages = take_over_all([start], params, tokenizer, experiment.objective)
        for name in params:
            jax.tree.map(np.testing.assert_array_equal, begun[name], (ctc if name in taken else params)[name])
        assert "new: " in messages[-1]
        assert "joint" in messages[-1]
