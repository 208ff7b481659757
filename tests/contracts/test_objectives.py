"""Every objective, with every model of its task, has the properties that `verify_objective` lists."""

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
    "joint pairs": (ALL_BUT_DATA, LONG, MeshShape(data=8)),
    "speech_lm speech_lm": (ALL_BUT_DATA, MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)),
    "masked_lm transformer": (ALL_BUT_DATA, LONG, MeshShape(data=2, fsdp=2, tensor=2)),
    "unit_lm transformer": (ALL_BUT_DATA, LONG),
}
"""Two meet every axis; the others all axes at once, and what else changes their program."""
CASES = [(name, shape) for name in TOYS for shape in MESHES.get(name, (ALL_BUT_DATA,))]


@pytest.mark.parametrize("name", TOYS)
def test_objective(name):
    verify_objective(name)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(name, shape):
    verify_on_mesh(name, shape)
