"""A run starts from the parameters of others: the right ones, whole, and no others."""

import jax
import numpy as np
import pytest

from data_pipelines.tokenizers import CharTokenizer
from jax_speechlm.experiment import Experiment, Start
from jax_speechlm.models.transformer import TransformerConfig
from jax_speechlm.objectives.causal_lm import CausalLM
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import train
from jax_speechlm.training.source import tokenizer_files
from jax_speechlm.training.state import make_trainer
from jax_speechlm.training.warm_start import take_over
from tests.training import tiny

ABC = CharTokenizer("abc ")


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a BEST-RQ run of one step."""
    run_dir = tmp_path_factory.mktemp("runs") / "pretrain"
    experiment = tiny.experiment("best_rq", num_steps=1)
    train(experiment, run_dir, tiny.MemorySource.make(experiment))
    return run_dir


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """The folder of a causal LM of fresh parameters, and its parameters."""
    folder = tmp_path_factory.mktemp("lm")
    objective = CausalLM().build(TransformerConfig(dim=8, num_layers=1, num_heads=1, num_kv_heads=1), None, ABC)
    experiment = tiny.experiment("ctc")
    mesh = meshes.make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        state = make_trainer(objective, experiment.optimizer, 1, 0, mesh).init(jax.random.key(0))
    run = ckpt.Checkpoints(folder)
    run.save(1, state, {"experiment": {}, "tokenizer": tokenizer_files(ABC), "plan": "", "step": 1})
    run.wait()
    run.close()
    return folder, state.params


def fresh(like):
    return jax.tree.map(lambda x: x * 0 - 1, like)


def test_finetuning_takes_the_encoder_over_and_nothing_else(pretrained, tmp_path):
    finetuning = tiny.experiment("ctc", num_steps=1, start=(Start(checkpoint=str(pretrained)),))
    still = finetuning.optimizer.replace(frozen=("encoder",), ema_decay=0.0)
    finetuning = finetuning.replace(optimizer=still)
    train(finetuning, tmp_path / "finetune", tiny.MemorySource.make(finetuning))
    theirs, _ = ckpt.read_params(pretrained)
    finetuned = ckpt.read(ckpt.find(tmp_path / "finetune")).state["params"]
    assert_same(theirs["encoder"], finetuned["encoder"])
    assert set(finetuned) == {"encoder", "head"}


def test_several_runs_each_bring_what_they_have(pretrained, language_model):
    folder, lm = language_model
    theirs, _ = ckpt.read_params(pretrained)
    params = fresh({"encoder": jax.tree.map(jax.numpy.asarray, theirs["encoder"]), **lm, "adapter": jax.numpy.ones(3)})
    started = params
    for start in (Start(checkpoint=str(pretrained)), Start(checkpoint=str(folder))):
        started = take_over(start, started, ABC)
    assert_same(started, {"encoder": theirs["encoder"], **lm, "adapter": params["adapter"]})


def test_a_group_may_have_another_name_there(language_model):
    folder, lm = language_model
    params = {"text": {"decoder": fresh(lm["transformer"])}, "transformer": fresh(lm["transformer"])}
    started = take_over(Start(checkpoint=str(folder), groups=("text/decoder=transformer",)), params, ABC)
    assert_same(started, {"text": {"decoder": lm["transformer"]}, "transformer": params["transformer"]})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("encodr",), r"start\.groups: nothing in this model lies below 'encodr': \['adapter', 'transformer'\]"),
        (("adapter",), r"has no adapter; it has transformer"),
        (("transformer", "adapter=transformer/nrom"), r"has no transformer/nrom; it has transformer"),
        ((), r"has no adapter; it has transformer"),
    ],
)
def test_a_group_that_is_missing_on_either_side_is_an_error(groups, message, language_model):
    folder, lm = language_model
    params = {**fresh(lm), "adapter": jax.numpy.ones(3)}
    with pytest.raises(ckpt.CheckpointError, match=message):
        take_over(Start(checkpoint=str(folder), groups=groups), params, ABC)


def test_a_run_that_shares_nothing_is_an_error(language_model):
    folder, _ = language_model
    with pytest.raises(ckpt.CheckpointError, match=r"neither .* \(transformer\) and in this model \(encoder, head"):
        take_over(Start(checkpoint=str(folder)), {"encoder": {}, "head": {}}, ABC)


def test_a_model_of_another_shape_cannot_take_over(pretrained, tmp_path):
    experiment = tiny.experiment("ctc", start=(Start(checkpoint=str(pretrained)),))
    wider = experiment.replace(model=experiment.model.replace(dim=32))
    with pytest.raises(ckpt.CheckpointError, match=r"encoder/.* has shape .* this model needs"):
        train(wider, tmp_path, tiny.MemorySource.make(wider))


def test_a_transformer_is_not_taken_over_under_another_tokenizer(language_model):
    """Two alphabets of one size: the table fits, but every row of it means another character."""
    folder, lm = language_model
    assert_same(take_over(Start(checkpoint=str(folder)), fresh(lm), ABC), lm)
    with pytest.raises(ckpt.CheckpointError, match=r"another tokenizer: set --data\.tokenizer"):
        take_over(Start(checkpoint=str(folder)), fresh(lm), CharTokenizer("xyz "))


def test_checkpoints_of_earlier_versions_say_start_otherwise():
    experiment = tiny.experiment("ctc").model_dump(mode="json")
    assert Experiment.model_validate(experiment | {"start": None}).start == ()
    one = Experiment.model_validate(experiment | {"start": {"checkpoint": "runs/a", "groups": ["encoder"]}})
    assert one.start == (Start(checkpoint="runs/a", groups=("encoder",)),)
