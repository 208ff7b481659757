"""The TPU compiler dies of flags that it does not know, and those for the CPU have been read before it is loaded."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _no_flags_for_the_cpu(monkeypatch):
    jax.devices()
    monkeypatch.delenv("XLA_FLAGS")
