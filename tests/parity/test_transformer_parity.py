"""The transformer against live, randomly initialised models of Hugging Face, and what we export loaded back there."""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_speechlm.interop.hf import transformer as interop
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

sys.path.append(str(Path(__file__).parents[1] / "golden"))
import make_transformer  # noqa: E402

KINDS = tuple(make_transformer.SETTINGS)
LONG = 200  # beyond the windows of the released models' kind


@pytest.fixture(scope="module", params=KINDS)
def reference(request):
    return make_transformer.random_model(request.param)


def ours(reference, tokens, segment, position):
    config = interop.config_from_hugging_face(reference.config.to_dict())
    state_dict = {name: value.numpy() for name, value in reference.state_dict().items()}
    params = read(interop.sources(state_dict, config))

    def make(rngs):
        return Transformer(config, make_transformer.VOCAB, rngs=rngs)

    run = jax.jit(partial(_logits, functional.declare(make).graphdef))
    return run(params, tokens, segment, position), params, config


def _logits(graphdef, params, *batch):
    model = functional.bind(graphdef, params)
    return model.logits(model(*batch))


def test_whole_and_padded_rows(reference):
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, make_transformer.VOCAB, (3, LONG)).astype(np.int32)
    segment = (np.arange(LONG) < np.array([[LONG], [77], [1]])).astype(np.int32)
    position = np.broadcast_to(np.arange(LONG, dtype=np.int32), tokens.shape)
    expected = make_transformer.logits_of(reference, tokens, segment, position)
    logits = ours(reference, tokens, segment, position)[0]
    np.testing.assert_allclose(logits[segment > 0], expected[segment > 0], atol=1e-4)


def test_packed_rows_are_their_parts_alone(reference):
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, make_transformer.VOCAB, (1, LONG)).astype(np.int32)
    lengths = (60, 1, 97, 42)
    segment = np.repeat(np.arange(1, 5, dtype=np.int32), lengths)[None]
    position = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])[None]
    logits = ours(reference, tokens, segment, position)[0]
    for part in range(1, 5):  # DistilBERT takes no positions, and these are those of a row by itself
        here = segment == part
        expected = make_transformer.logits_of(reference, tokens[here][None], segment[here][None], position[here][None])
        np.testing.assert_allclose(logits[here], expected[0], atol=1e-4)


def test_what_we_export_loads_strictly_and_computes_the_same(reference):
    tokens, segment, position = make_transformer.inputs(padded_left=reference.config.model_type != "distilbert")
    _, params, config = ours(reference, tokens, segment, position)
    exported = interop.to_hugging_face(params, config)
    values = interop.config_to_hugging_face(config, make_transformer.VOCAB)
    loaded = getattr(transformers, values["architectures"][0])(
        transformers.AutoConfig.for_model(**values, attn_implementation="eager")
    ).eval()
    loaded.load_state_dict({name: torch.tensor(value) for name, value in exported.items()}, strict=True)
    theirs, again = (make_transformer.logits_of(model, tokens, segment, position) for model in (reference, loaded))
    np.testing.assert_array_equal(theirs, again)
