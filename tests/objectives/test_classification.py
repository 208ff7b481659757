"""Classification of utterances and of texts: means over a row's own hidden states, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.frontend.augment import SPEC_AUGMENT
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.base import SpeechClassifier
from jax_speechlm.objectives.heads.classification import Classification, TextClassifier
from jax_speechlm.tasks.inputs import class_ids
from tests.objectives.text import MODEL, TOKENIZER, VOCABULARY, documents, pack

CONFIG = Classification(classes=("low", "middle", "high"))
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3))
CONFORMER = ConformerConfig(input_dim=16, dim=8, num_layers=1, num_heads=2, kernel_size=3, left_max=4, right_max=2)
TRANSFORMER = MODEL.replace(causal=False, head="transform")
FAST = FastConformerConfig(input_dim=8, dim=8, num_layers=1, num_heads=2, kernel_size=3, channels=4)
MODELS = {"speech": CONFORMER, "fast": FAST, "text": TRANSFORMER}


def speech_batch() -> dict[str, np.ndarray]:
    rng, shares = np.random.default_rng(0), np.array([1.0, 0.5, 0.0, 0.8, 0.1, 0.6])
    labels = ["low", "high", "low", "middle", "low", "high"]
    return {
        "audio": rng.integers(-9000, 9000, (6, 16_000)).astype(np.int16),
        "audio_length": (shares * 16_000).astype(np.int32),
        "label": class_ids(labels, CONFIG.classes),
        "example_id": np.array([7, 8, -1, 9, 10, 11], np.int32),
        "weight": (shares > 0).astype(np.float32),
    }


def text_batch() -> dict[str, np.ndarray]:
    rows = [[document] for document in documents(0, [9, 4, 12, 3, 0, 7])]
    rows[2] = []
    return pack(rows, 16) | {"label": np.array([0, 2, 0, 1, 0, 2], np.int32)}


BATCHES = {"speech": speech_batch, "fast": speech_batch, "text": text_batch}
FRONTENDS = {"speech": FRONTEND, "fast": FRONTEND.replace(mel=LogMel(num_mel_bins=8, stack=1)), "text": FRONTEND}


@functools.cache
def objective(kind: str):
    built = CONFIG.build(MODELS[kind], FRONTENDS[kind], TOKENIZER if kind == "text" else None)
    return built, functional.init(built.make, jax.random.key(1)), jax.jit(built.loss)


@functools.cache
def encoder(kind: str):
    """What a classifier's model gives for a batch, and what stands between it and the last layer."""
    size = (TRANSFORMER, VOCABULARY.size) if kind == "text" else (MODELS[kind],)

    def make(rngs):
        return (TextClassifier if kind == "text" else SpeechClassifier)(*size, 3, rngs=rngs)

    graphdef = functional.declare(make).graphdef
    if kind == "text":

        def hidden(params, *batch):
            return functional.bind(graphdef, params).transformer(*batch)

        return jax.jit(hidden), jax.jit(lambda params, x: functional.bind(graphdef, params).transformer.head(x))

    def hear(batch):
        return features(batch, FRONTENDS[kind], None)

    def hidden(params, batch):
        return functional.bind(graphdef, params).encoder(*hear(batch))[0]

    return jax.jit(hidden), lambda params, x: x


def row_logits(kind: str, params, batch, row: int) -> np.ndarray:
    """The oracle: one row by itself, its hidden states averaged in numpy."""
    hidden, between = encoder(kind)
    if kind != "text":
        one = {name: jnp.asarray(batch[name][row : row + 1]) for name in ("audio", "audio_length")}
        pooled = np.asarray(hidden(params, one))[0]
        pooled = pooled[np.abs(pooled).sum(-1) > 0].mean(0)  # padding is 0
    else:
        length = int((batch["segment"][row] > 0).sum())
        one = (jnp.asarray(batch[name][row : row + 1]) for name in ("tokens", "segment", "position"))
        pooled = np.asarray(hidden(params, *one))[0, :length].mean(0)
    pooled = np.asarray(between(params, jnp.asarray(pooled)))
    return pooled.astype(np.float64) @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])


@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_cross_entropy_of_each_row_alone(kind):
    _, params, run = objective(kind)
    batch = BATCHES[kind]()
    loss, metrics = run(params, batch, None)
    classes = [0, 2, None, 1, 0, 2]
    nll, hits = [], []
    for row in (0, 1, 3, 4, 5):
        logits = row_logits(kind, params, batch, row)
        nll.append(np.log(np.exp(logits).sum()) - logits[classes[row]])
        hits.append(logits.argmax() == classes[row])
    np.testing.assert_allclose(metrics["loss"], (sum(nll), 5), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (sum(hits), 5))
    np.testing.assert_allclose(loss, np.mean(nll), rtol=1e-4)


def test_what_pretraining_trained_keeps_its_name():
    assert set(objective("speech")[1]) == {"encoder", "head"}
    assert set(objective("text")[1]) == {"transformer", "head"}


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="at least 2 items"):
        Classification(classes=("one",))
    with pytest.raises(ValueError, match="train-tokenizer"):
        CONFIG.build(TRANSFORMER, None, None)
    with pytest.raises(ValueError, match=r"--model\.input_dim 16"):
        CONFIG.build(CONFORMER.replace(input_dim=80), FRONTEND, None)
    with pytest.raises(DataError, match=r"objective\.classes"):
        class_ids(["low", "lowest"], CONFIG.classes)
