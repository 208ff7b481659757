"""Keeps the tests' flags from the TPU compiler, which ends the process at one that it does not know."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _flags_of_the_cpu_alone():
    jax.devices()  # has read them by then
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield
