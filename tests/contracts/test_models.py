"""Every model has the properties that `verify_model` lists."""

from pathlib import Path

import pytest
from flax import nnx

import jax_speechlm.models
from tests.contracts.models import TOYS, verify_model


@pytest.mark.parametrize("name", TOYS)
def test_model(name):
    verify_model(name)


def test_every_file_of_models_has_a_toy():
    files = {
        path.stem for path in Path(jax_speechlm.models.__path__[0]).glob("*.py") if "(nnx.Module)" in path.read_text()
    }
    names = {type(toy.make(nnx.Rngs(0))).__module__.rpartition(".")[2] for toy in TOYS.values()}
    assert names == files
