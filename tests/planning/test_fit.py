"""The search for the fastest settings, on the CPU's virtual devices."""

import jax
import pytest

from jax_speechlm.parallel import chips
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.planning import ahead_of_time
from jax_speechlm.planning.fit import REMATS, _meshes, fit, with_remat
from jax_speechlm.recipes import registry


@pytest.fixture
def virtual(monkeypatch):
    """Makes plans be for this process's CPU devices."""
    monkeypatch.setattr(ahead_of_time, "devices_of", lambda topology: jax.devices())
    return chips.topology("v5e-8")


def small_lm():
    experiment = registry.load("demo/lm")
    model = experiment.model.replace(dim=64, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=96)
    data = experiment.data.replace(sets=("absent",), dev_sets=(), weights=(), tokens_per_batch=2048)
    return experiment.replace(model=model.replace(remat="full"), data=data, mesh=MeshShape(data=2, fsdp=4))


def test_few_compilations_still_try_every_policy_some_meshes_and_batches(virtual):
    """The policies change the time most, and there are more meshes than compilations."""
    experiment = small_lm()
    trials = fit(experiment, virtual, vocab_size=100, max_compiles=8)
    assert len(trials) == 8
    tried = [trial.experiment for trial in trials]
    assert {each.model.remat for each in tried if each.mesh == experiment.mesh} == set(REMATS)
    assert len({each.mesh for each in tried}) > 1
    assert len({each.data.tokens_per_batch for each in tried}) > 1
    assert trials[0].experiment.model.remat != "full"


@pytest.mark.parametrize(
    ("name", "tensor", "sequence"),
    [
        ("v5p-512", {1, 2, 4, 8, 16}, {1, 2, 4, 8}),
        ("v5e-4", {1, 2, 4}, {1, 2, 4}),
        ("h100-64", {1, 2, 4, 8}, {1, 2, 4, 8}),
    ],
)
def test_devices_that_share_rows_are_in_one_slice_or_one_node(name, tensor, sequence):
    """A v5p host has four chips, and its links reach over hosts; a node of GPUs has eight."""
    topology = chips.topology(name)
    meshes = [each.mesh for each in _meshes(small_lm(), topology)]
    assert {mesh.tensor for mesh in meshes} == tensor
    assert {mesh.sequence for mesh in meshes} == sequence
    for mesh in meshes:
        assert mesh.data * mesh.fsdp * mesh.sequence * mesh.tensor == topology.num_devices


def test_a_policy_is_for_all_stacks_of_a_model():
    speech_lm = registry.load("scaling/speech_lm_10b_v5p512").model
    changed = with_remat(speech_lm, "none")
    assert (changed.encoder.remat, changed.transformer.remat) == ("none", "none")
    assert with_remat(changed, speech_lm.transformer.remat).transformer == speech_lm.transformer


def test_a_speech_lm_is_searched_by_the_options_of_both_stacks(virtual, monkeypatch):
    def give_up(*program):
        raise jax.errors.JaxRuntimeError("INTERNAL: no program is needed here")

    monkeypatch.setattr(ahead_of_time, "compile_lowered", give_up)
    experiment = registry.load("four_way/speech_lm").replace(mesh=MeshShape())
    experiment = experiment.replace(data=experiment.data.replace(batch_multiple=8))
    trials = fit(experiment, virtual, vocab_size=100, max_compiles=4)
    assert len(trials) > 3
    for trial in trials:
        model = trial.experiment.model
        assert f"--model.encoder.remat {model.encoder.remat} " in trial.settings
        assert f"--model.transformer.remat {model.transformer.remat} " in trial.settings
    assert {trial.experiment.model.encoder.remat for trial in trials} > {"none", "full"}
