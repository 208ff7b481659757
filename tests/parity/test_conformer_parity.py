"""The conformer against a live, randomly initialised Wav2Vec2BertForCTC."""

from functools import partial

import jax
import numpy as np
import pytest

from jax_speechlm.interop.hf import wav2vec2_bert
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.conformer import Conformer
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(1)
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, vocab_size=32,
        layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    return transformers.Wav2Vec2BertForCTC(config).eval()


def test_hidden_states_and_logits(reference):
    """Longer than the distance table's reach, lengths mixed, right-padded as the feature extractor does."""
    config = wav2vec2_bert.config_from_hugging_face(reference.config.to_dict())
    state_dict = {name: value.numpy() for name, value in reference.state_dict().items()}
    params = read(wav2vec2_bert.sources(state_dict, config))
    encoder, head = params["encoder"], params["head"]
    graphdef = functional.declare(lambda rngs: Conformer(config, rngs=rngs)).graphdef

    lengths = np.array([150, 97, 64, 2], np.int32)
    features = np.random.default_rng(0).standard_normal((4, 150, 160)).astype(np.float32)
    mask = np.arange(150) < lengths[:, None]
    with torch.no_grad():
        expected = reference(
            torch.tensor(features), attention_mask=torch.tensor(mask).long(), output_hidden_states=True
        )
    run = jax.jit(partial(_encode, graphdef), static_argnames="taps")
    hidden, tapped = run(encoder, features, lengths, taps=(1, 2, 3))
    logits = hidden @ head["kernel"] + head["bias"]
    for row, length in enumerate(lengths):
        for layers in (1, 2, 3):
            theirs = expected.hidden_states[layers][row, :length].numpy()
            np.testing.assert_allclose(tapped[layers][row, :length], theirs, atol=1e-4)
        np.testing.assert_allclose(logits[row, :length], expected.logits[row, :length].numpy(), atol=1e-4)


def test_what_we_export_loads_strictly_and_computes_the_same(reference):
    config = wav2vec2_bert.config_from_hugging_face(reference.config.to_dict())
    state_dict = {name: value.numpy() for name, value in reference.state_dict().items()}
    exported = wav2vec2_bert.to_hugging_face(read(wav2vec2_bert.sources(state_dict, config)), config)
    values = wav2vec2_bert.config_to_hugging_face(config, vocab_size=32)
    model = transformers.Wav2Vec2BertForCTC(transformers.Wav2Vec2BertConfig(**values)).eval()
    model.load_state_dict({name: torch.tensor(value) for name, value in exported.items()}, strict=True)
    features = torch.randn(2, 40, 160)
    with torch.no_grad():
        assert torch.equal(model(features).logits, reference(features).logits)


def _encode(graphdef, params, features, lengths, taps):
    return functional.bind(graphdef, params)(features, lengths, taps=taps)
