"""Imports and exports here are checked by this package alone, whether or not transformers is installed."""

import pytest

from jax_speechlm.interop.hf.verify import check


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch):
    monkeypatch.setattr(check, "transformers_is_installed", lambda: False)
