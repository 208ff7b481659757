"""Causal language modelling: documents count alike, however they are packed."""

import functools

import jax
import numpy as np
import pytest

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from tests.objectives.text import MODEL, TOKENIZER, VOCABULARY, documents, pack

DOCUMENTS = documents(0, [9, 4, 0, 14, 7, 2])
ROWS = [DOCUMENTS[:2], DOCUMENTS[2:4], [DOCUMENTS[4]], [], [DOCUMENTS[5]]]
TIME = 24


@functools.cache
def objective(z_weight: float = 1e-3):
    """The objective, its parameters, its jitted loss and its jitted logits."""
    built = CausalLM(z_weight=z_weight).build(MODEL, FrontEnd(), TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    graphdef = functional.declare(built.make).graphdef

    def logits(params, tokens, position):
        model = functional.bind(graphdef, params).transformer
        return model.logits(model(tokens, position * 0 + 1, position))

    return built, params, jax.jit(built.loss), jax.jit(logits)


def document_losses(ids: list[int]) -> np.ndarray:
    """(nll, log_z^2, hit) of every token behind the first: the document alone in its row, in numpy, float64."""
    _, params, _, logits = objective()
    row = np.zeros((1, TIME), np.int32)
    row[0, : len(ids)] = ids
    scores = np.asarray(logits(params, row, np.arange(TIME, dtype=np.int32)[None])[0, : len(ids) - 1], np.float64)
    log_z = np.log(np.exp(scores).sum(-1))
    targets = np.array(ids[1:])
    return np.stack([log_z - scores[np.arange(len(targets)), targets], log_z**2, scores.argmax(-1) == targets])


def test_equals_the_sum_over_documents_alone():
    loss, metrics = objective()[2](objective()[1], pack(ROWS, TIME), None)
    nll, log_z, hits = np.concatenate([document_losses(ids) for ids in DOCUMENTS], axis=1).sum(1)
    count = sum(len(ids) - 1 for ids in DOCUMENTS)
    np.testing.assert_allclose(metrics["cross_entropy"], (nll, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (nll + 1e-3 * log_z, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (hits, count))
    np.testing.assert_allclose(loss, metrics["loss"][0] / count, rtol=1e-6)


def test_flops_are_those_of_the_matrix_products():
    built, params, *_ = objective()
    kernels = params["transformer"]["layers"]
    linear = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(kernels) if "kernel" in str(path))
    head = VOCABULARY.size * MODEL.dim
    attention = MODEL.num_layers * 2 * MODEL.num_heads * MODEL.head_dim * TIME * (TIME + 1) / 2
    assert built.forward_flops(TIME, 3) == pytest.approx(2 * 3 * (TIME * (linear + head) + attention))


@pytest.mark.parametrize(
    ("model", "tokenizer", "message"),
    [
        (MODEL, None, "train-tokenizer"),
        (MODEL.replace(causal=False), TOKENIZER, "--model.causal True"),
        (ConformerConfig(), TOKENIZER, "not a conformer"),
    ],
)
def test_settings_that_cannot_work_are_refused(model, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        CausalLM().build(model, FrontEnd(), tokenizer)
