"""Every objective, with every model of its task, has the properties that `verify_objective` lists."""

import math

import jax
import pytest

from jax_speechlm.parallel.mesh import MeshShape
from tests.contracts.objectives import TOYS, verify_objective, verify_on_mesh

ALL_BUT_DATA, LONG = MeshShape(data=1, fsdp=2, sequence=2, tensor=2), MeshShape(data=1, sequence=8)
MESHES = {
    "ctc conformer": (ALL_BUT_DATA, LONG, MeshShape(data=8)),
    "causal_lm transformer": (
        ALL_BUT_DATA,
        LONG,
        MeshShape(data=8),
        MeshShape(data=1, fsdp=8),
        MeshShape(data=1, fsdp=2, sequence=4),
        MeshShape(data=2, fsdp=2, tensor=2),
        MeshShape(data=2, sequence=2, tensor=2),
    ),
    "joint pairs": (ALL_BUT_DATA, LONG),
    "speech_lm speech_lm": (ALL_BUT_DATA, MeshShape(data=8)),
    "masked_lm transformer": (ALL_BUT_DATA, LONG, MeshShape(data=2, fsdp=2, tensor=2)),
    "unit_lm transformer": (ALL_BUT_DATA, LONG),
}
"""Two meet every axis; the others all axes at once, and what else changes their program."""
ENCODERS = {toy.model.kind for toy in TOYS.values() if toy.config.kind == "ctc"} - {"conformer"}
ON_MESHES = [name for name, toy in TOYS.items() if toy.config.kind == "ctc" or toy.model.kind not in ENCODERS]
"""CTC with every encoder, and the other objectives with the conformer."""
CASES = [
    (name, shape)
    for name in TOYS
    for shape in (None, *(MESHES.get(name, (ALL_BUT_DATA,)) if name in ON_MESHES else ()))
]
"""Those of one toy follow one another; None is one device."""


@pytest.fixture(autouse=True)
def _no_programs_of_other_toys(request):
    """Frees compiled programs that no later test needs, and keeps them out of the cache on disk."""
    for other, toy in TOYS.items():
        if other != request.node.callspec.params.get("name"):
            vars(toy).pop("_losses", None)
            vars(toy).pop("trained", None)
    setting = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, setting)
    jax.config.update(setting, math.inf)
    yield
    jax.config.update(setting, before)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_objective(name, shape):
    if shape is None:
        verify_objective(name)
    else:
        verify_on_mesh(name, shape)


@pytest.mark.parametrize("part", ["config", "model"])
def test_every_objective_and_every_model_meets_a_mesh(part):
    assert {getattr(TOYS[name], part).kind for name in ON_MESHES} == {getattr(t, part).kind for t in TOYS.values()}
