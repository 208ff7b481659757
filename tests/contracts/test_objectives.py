"""Every objective, with every model of its task, has the properties that `verify_objective` lists."""

import pytest

from jax_speechlm.parallel.mesh import MeshShape
from tests.contracts.objectives import TOYS, verify_objective, verify_on_mesh

SEQUENCE, ALL_BUT_DATA = MeshShape(data=1, sequence=8), MeshShape(data=1, fsdp=2, sequence=2, tensor=2)


@pytest.mark.parametrize("name", TOYS)
def test_objective(name):
    verify_objective(name)


@pytest.mark.parametrize("name", TOYS)
def test_objective_on_a_mesh(name):
    verify_on_mesh(name, ALL_BUT_DATA)
