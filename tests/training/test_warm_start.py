"""A run starts from the parameters of others: the right ones, whole, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.tree import paths
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.recipes.experiment import Experiment, InitFrom, Text, UnitText
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import _initial_state, train
from jax_speechlm.training.runs import tokenizer_files
from jax_speechlm.training.state import make_trainer
from jax_speechlm.training.warm_start import PER_TOKEN, take_over, take_over_all
from tests.evaluation.runs import write_run
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
    run.save(
        1,
        state,
        {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(ABC), "plan": "", "step": 1},
    )
    run.wait()
    run.close()
    return folder, state.params


def fresh(like):
    return jax.tree.map(lambda x: x * 0 - 1, like)


def test_finetuning_takes_the_encoder_over_and_nothing_else(pretrained, tmp_path):
    finetuning = tiny.experiment("ctc", num_steps=1, init_from=(InitFrom(checkpoint=str(pretrained)),))
    still = finetuning.optimizer.replace(frozen=("encoder",), ema_decay=0.0)
    finetuning = finetuning.replace(optimizer=still)
    train(finetuning, tmp_path / "finetune", tiny.MemorySource.make(finetuning))
    theirs, _ = ckpt.read_params(pretrained)
    finetuned = ckpt.read(ckpt.find(tmp_path / "finetune")).state["params"]
    assert_same(theirs["encoder"], finetuned["encoder"])
    assert set(finetuned) == {"encoder", "head"}


def test_what_is_taken_over_and_what_is_new_is_said(pretrained):
    theirs, _ = ckpt.read_params(pretrained)
    params = {"encoder": jax.tree.map(jnp.zeros_like, theirs["encoder"]), "head": {"kernel": jnp.zeros((2, 3))}}
    _, (taken, new) = take_over_all([InitFrom(checkpoint=str(pretrained))], params, None)
    size = sum(leaf.size for leaf in jax.tree.leaves(theirs["encoder"]))
    assert taken == f"taken over from {pretrained}: encoder ({size:,} parameters)"
    assert new == "new: head (6 parameters)"
    layer = "encoder/layers/ffn1" if "ffn1" in theirs["encoder"]["layers"] else "encoder/layers"
    _, (taken, new) = take_over_all([InitFrom(checkpoint=str(pretrained), groups=(layer,))], params, None)
    assert taken.startswith(f"taken over from {pretrained}: {layer} (")
    assert layer not in new.replace(f"{layer}_", "")
    assert "head (6 parameters)" in new


def test_what_only_training_needs_is_taken_over_too(tmp_path):
    """A voice's aligner, which reading a voice to use it leaves out."""
    experiment = tiny.experiment("tts")
    run = write_run(tmp_path, experiment, ABC)
    objective = experiment.objective.build(experiment.model, experiment.frontend, ABC)
    params = functional.init(objective.make, jax.random.key(5))
    taken = take_over(InitFrom(checkpoint=str(run), groups=("acoustic", "aligner")), params, ABC)
    assert "aligner" in objective.training_only
    assert_same(taken, ckpt.read(ckpt.find(run)).state["params"])


def test_a_start_that_cannot_be_read_leaves_no_folder(tmp_path):
    experiment = tiny.experiment("ctc", num_steps=1, init_from=(InitFrom(checkpoint=str(tmp_path / "nothing")),))
    run_dir = tmp_path / "runs" / "finetune"
    with pytest.raises(ckpt.CheckpointError, match="nothing"):
        train(experiment, run_dir, tiny.MemorySource.make(experiment))
    assert not run_dir.parent.exists()
    run_dir.mkdir(parents=True)  # a folder that was there is its owner's
    with pytest.raises(ckpt.CheckpointError, match="nothing"):
        train(experiment, run_dir, tiny.MemorySource.make(experiment))
    assert run_dir.exists()


def test_the_average_of_a_run_that_takes_over_has_buffers_of_its_own(pretrained, tmp_path):
    """A step gives the buffers of parameters and average up: one that stood in both would be freed twice."""
    experiment = tiny.experiment("best_rq", init_from=(InitFrom(checkpoint=str(pretrained)),))
    mesh = meshes.make_mesh(experiment.mesh)
    objective = experiment.objective.build(experiment.model, experiment.frontend, None)
    with jax.set_mesh(mesh):
        trainer = make_trainer(objective, experiment.optimizer, 8, 0, mesh)
        state, *_ = _initial_state(
            experiment, trainer, ckpt.Checkpoints(tmp_path), {"units": None}, None, lambda state: state, {}
        )
    params, average = (
        {leaf.addressable_data(0).unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
        for tree in (state.params, state.ema)
    )
    assert average
    assert not params & average
    assert_same(state.ema["encoder"], state.params["encoder"])


def test_several_runs_each_bring_what_they_have(pretrained, language_model):
    folder, lm = language_model
    theirs, _ = ckpt.read_params(pretrained)
    params = fresh({"encoder": jax.tree.map(jax.numpy.asarray, theirs["encoder"]), **lm, "adapter": jax.numpy.ones(3)})
    started = params
    for start in (InitFrom(checkpoint=str(pretrained)), InitFrom(checkpoint=str(folder))):
        started = take_over(start, started, ABC)
    assert_same(started, {"encoder": theirs["encoder"], **lm, "adapter": params["adapter"]})


def test_a_group_may_have_another_name_there(language_model):
    folder, lm = language_model
    params = {"text": {"decoder": fresh(lm["transformer"])}, "transformer": fresh(lm["transformer"])}
    started = take_over(InitFrom(checkpoint=str(folder), groups=("text/decoder=transformer",)), params, ABC)
    assert_same(started, {"text": {"decoder": lm["transformer"]}, "transformer": params["transformer"]})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("encodr",), r"init_from\.groups: nothing lies below 'encodr' in this model: \['adapter', 'transformer'\]"),
        (("adapter",), r"has no adapter; it has transformer"),
        (("transformer", "adapter=transformer/nrom"), r"has no transformer/nrom; it has transformer"),
        ((), r"has no adapter; it has transformer"),
    ],
)
def test_a_group_that_is_missing_on_either_side_is_an_error(groups, message, language_model):
    folder, lm = language_model
    params = {**fresh(lm), "adapter": jax.numpy.ones(3)}
    with pytest.raises(ckpt.CheckpointError, match=message):
        take_over(InitFrom(checkpoint=str(folder), groups=groups), params, ABC)


def test_a_run_that_shares_nothing_is_an_error(language_model):
    folder, _ = language_model
    with pytest.raises(ckpt.CheckpointError, match=r"none of .* \(transformer\) and in this model \(encoder, head"):
        take_over(InitFrom(checkpoint=str(folder)), {"encoder": {}, "head": {}}, ABC)


def test_a_model_of_another_shape_cannot_take_over(pretrained, tmp_path):
    experiment = tiny.experiment("ctc", init_from=(InitFrom(checkpoint=str(pretrained)),))
    wider = experiment.replace(model=experiment.model.replace(dim=32))
    with pytest.raises(ckpt.CheckpointError, match=r"encoder/.* has shape .* this model needs"):
        train(wider, tmp_path, tiny.MemorySource.make(wider))


def test_a_transformer_is_not_taken_over_under_another_tokenizer(language_model):
    """Two alphabets of one size: the table fits, but every row of it means another character."""
    folder, lm = language_model
    assert_same(take_over(InitFrom(checkpoint=str(folder)), fresh(lm), ABC), lm)
    with pytest.raises(ckpt.CheckpointError, match=r"another tokenizer: set --data\.tokenizer"):
        take_over(InitFrom(checkpoint=str(folder)), fresh(lm), CharTokenizer("xyz "))


def test_checkpoints_of_earlier_versions_say_start_otherwise():
    experiment = tiny.experiment("ctc").model_dump(mode="json")
    del experiment["init_from"]
    assert Experiment.model_validate(experiment | {"start": None}).init_from == ()
    one = Experiment.model_validate(experiment | {"start": {"checkpoint": "runs/a", "groups": ["encoder"]}})
    assert one.init_from == (InitFrom(checkpoint="runs/a", groups=("encoder",)),)


class TestGrowth:
    """A unit model that starts from a text model."""

    UNITS = 5

    @staticmethod
    def model(**changes):
        return TransformerConfig(dim=8, num_layers=1, num_heads=1, num_kv_heads=1).replace(**changes)

    def saved(self, folder, objective, model, units=None):
        """Saves fresh parameters, and gives them, the objective and the units."""
        mesh = meshes.make_mesh(tiny.experiment("ctc").mesh)
        data = UnitText(sets=("letters",), units="units") if units else Text(sets=("letters",))
        experiment = Experiment(data=data, objective=objective, model=model)
        meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(ABC), "plan": ""}
        meta |= {"units": units, "step": 1}
        built = objective.build(model, None, ABC)
        with jax.set_mesh(mesh):
            state = make_trainer(built, tiny.experiment("ctc").optimizer, 1, 0, mesh).init(jax.random.key(len(meta)))
        run = ckpt.Checkpoints(folder)
        run.save(1, state, meta)
        run.wait()
        run.close()
        return state.params, (objective, units)

    @pytest.mark.parametrize("changes", [{}, {"tied": False}, {"head": "transform", "tied": False}])
    def test_rows_of_known_ids_are_copied_and_the_others_stay_fresh(self, tmp_path, changes):
        model = self.model(**changes)
        theirs, _ = self.saved(tmp_path / "text", CausalLM(), model)
        ours, own = self.saved(tmp_path / "units", UnitLM(num_units=self.UNITS), model, "k")
        ours = jax.tree.map(lambda leaf: leaf * 0 - 7, ours)
        taken = take_over(InitFrom(checkpoint=str(tmp_path / "text")), ours, ABC, *own)["transformer"]
        known = Vocabulary.of(ABC).sentinel  # the tokenizer's, the boundary, the mask
        assert known < Vocabulary.of(ABC).size < Vocabulary.of(ABC, num_units=self.UNITS).size
        leaves = dict(zip(paths(taken), jax.tree.leaves(taken), strict=True))
        before = dict(zip(paths(theirs["transformer"]), jax.tree.leaves(theirs["transformer"]), strict=True))
        grown = set()
        for name, leaf in leaves.items():
            if leaf.shape == before[name].shape:
                np.testing.assert_array_equal(leaf, before[name], err_msg=name)
                continue
            grown.add(f"transformer/{name}")
            np.testing.assert_array_equal(leaf[:known], before[name][:known])
            assert (np.asarray(leaf[known:]) == -7).all()  # also where the text model has rows that mean nothing
        axes = functional.declare(UnitLM(num_units=self.UNITS).build(model, None, ABC).make).axes
        has_rows = [name for name, leaf in zip(paths(ours), self.axes(axes), strict=True) if "vocab" in leaf]
        assert grown == set(has_rows) <= set(PER_TOKEN)

    @staticmethod
    def axes(tree):
        return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def test_at_the_start_text_costs_what_it_cost_where_units_are_masked_out(self, tmp_path):
        theirs, _ = self.saved(tmp_path / "text", CausalLM(), self.model())
        ours, own = self.saved(tmp_path / "units", UnitLM(num_units=self.UNITS), self.model(), "k")
        taken = take_over(InitFrom(checkpoint=str(tmp_path / "text")), ours, ABC, *own)
        tokens = jnp.array([[5, 1, 2, 3, 4, 5]])
        place = jnp.arange(6)[None]
        found = []
        for objective, params in ((CausalLM(), theirs), (UnitLM(num_units=self.UNITS), taken)):
            graphdef = functional.declare(objective.build(self.model(), None, ABC).make).graphdef
            transformer = functional.bind(graphdef, jax.device_put(jax.device_get(params))).transformer
            logits = transformer.logits(transformer(tokens, place * 0 + 1, place))
            found.append(np.asarray(logits)[:, :, : Vocabulary.of(ABC).sentinel])
        # A logit near 0 is a sum of larger products: float32 rounds it by their size, not by its own.
        np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6 * np.abs(found[0]).max())

    def test_a_unit_model_is_not_started_from_one_of_other_units(self, tmp_path):
        theirs, _ = self.saved(tmp_path / "one", UnitLM(num_units=self.UNITS), self.model(), "one")
        ours, own = self.saved(tmp_path / "other", UnitLM(num_units=self.UNITS), self.model(), "other")
        start = InitFrom(checkpoint=str(tmp_path / "one"))
        with pytest.raises(ckpt.CheckpointError, match=r"other speech units \(one\) than this run's \(other\)"):
            take_over(start, ours, ABC, *own)
        assert_same(take_over(start, fresh(ours), ABC, own[0], "one"), theirs)
        with pytest.raises(ckpt.CheckpointError, match="another tokenizer"):
            take_over(start, ours, CharTokenizer("xyz "), *own)
        wider, own = self.saved(tmp_path / "wide", UnitLM(num_units=9), self.model(dim=16), "one")
        with pytest.raises(ckpt.CheckpointError, match=r"embedding has shape \(\d+, 8\), this model needs \(\d+, 16\)"):
            take_over(start, wider, ABC, *own)


def test_a_head_over_other_speech_units_is_not_taken_over(tmp_path):
    experiment = tiny.experiment("hubert")
    objective = experiment.objective.build(experiment.model, experiment.frontend)
    params = functional.init(objective.make, jax.random.key(0))
    run, mesh = ckpt.Checkpoints(tmp_path), meshes.make_mesh(experiment.mesh)
    meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": {}, "plan": "", "units": "one"}
    with jax.set_mesh(mesh):
        trainer = make_trainer(objective, experiment.optimizer, 1, 0, mesh)
        run.save(1, trainer.init(jax.random.key(1)), meta | {"step": 1})
    run.wait()
    run.close()
    everything, encoder = InitFrom(checkpoint=str(tmp_path), groups=()), InitFrom(checkpoint=str(tmp_path))
    theirs, _ = ckpt.read_params(tmp_path)
    assert_same(take_over(everything, params, None, experiment.objective, "one"), theirs)
    other = experiment.objective, "two"
    assert_same(take_over(encoder, params, None, *other), params | {"encoder": theirs["encoder"]})
    with pytest.raises(ckpt.CheckpointError, match=r"units of another k-means \(one\) than this run's \(two\)"):
        take_over(everything, params, None, *other)
