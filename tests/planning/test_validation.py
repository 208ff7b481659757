"""Plans against runs that others have measured: each compiles a whole step of 7 to 32 B parameters."""

import importlib.util
import sys
from pathlib import Path

import pytest

from jax_speechlm.parallel.chips import topology
from jax_speechlm.recipes import registry

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import plan_validation

COMPILER = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}

FAR = ("validation/fuji_7b_v4_1024", "validation/maxtext_32b_v5p128")
"""Rows whose estimates are off by more than a fifth (docs/scaling.md)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", plan_validation.recipes())
def test_the_bound_is_below_the_published_time_and_the_estimate_near(name):
    module = COMPILER[topology(registry.load(name).topology).spec.platform]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    found = plan_validation.compare(name)
    assert found.best < found.measured
    assert name in FAR or abs(found.error) < 0.2
