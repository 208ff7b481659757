"""The transformer on vectors against Hugging Face's `inputs_embeds`; the convolutional adapter against torch's."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.interop.hf import transformer as interop
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.adapter import Convolutional
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig, SpeechTransformer
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

sys.path.append(str(Path(__file__).parents[1] / "golden"))
import make_transformer  # noqa: E402


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_speech_among_tokens_is_what_inputs_embeds_is(kind):
    reference = make_transformer.random_model(kind)
    config = interop.config_from_hugging_face(reference.config.to_dict())
    taken = read(interop.sources({name: value.numpy() for name, value in reference.state_dict().items()}, config))
    encoder = ConformerConfig(input_dim=4, dim=4, num_layers=1, num_heads=1, kernel_size=3)
    shape = SpeechLMConfig(encoder=encoder, transformer=config)

    def make(rngs):
        return SpeechTransformer(shape, make_transformer.VOCAB, rngs=rngs)

    params = functional.init(make, jax.random.key(0)) | {"transformer": taken}
    model = functional.bind(functional.declare(make).graphdef, jax.tree.map(jnp.asarray, params))
    rng = np.random.default_rng(0)
    speech = rng.normal(0, 0.5, (2, 6, config.dim)).astype(np.float32)
    before, behind = rng.integers(1, make_transformer.VOCAB, 3), rng.integers(1, make_transformer.VOCAB, 2)
    answer = rng.integers(1, make_transformer.VOCAB, (2, 4)).astype(np.int32)
    lengths, answers = np.array([6, 3], np.int32), np.array([2, 4], np.int32)
    spoken, written = map(jnp.asarray, (speech, lengths)), map(jnp.asarray, (answer[:, None], answers[:, None]))
    sequence = model.lay_out(before, *spoken, behind, *written, num_text=3 + 2 + 4)
    hidden, _ = model.transformer.encode(sequence.vectors, sequence.segment, sequence.position)
    logits = np.asarray(model.transformer.logits(hidden))

    embed = reference.get_input_embeddings()
    for row in range(2):
        tokens = [embed(torch.tensor(ids)) for ids in (before, behind, answer[row, : answers[row]].astype(np.int64))]
        vectors = torch.cat([tokens[0], torch.tensor(speech[row, : lengths[row]]), *tokens[1:]])
        with torch.no_grad():
            expected = reference(inputs_embeds=vectors[None]).logits[0].numpy()
        np.testing.assert_allclose(logits[row, : len(expected)], expected, atol=1e-4)


def test_the_convolutional_adapter_is_torchs():
    config = Convolutional(num_layers=2, stride=2, kernel_size=5, hidden_dim=7)

    def make(rngs):
        return config.build(6, 9, rngs)

    params = jax.device_get(functional.init(make, jax.random.key(3)))
    adapter = functional.bind(functional.declare(make).graphdef, params)
    x = np.random.default_rng(1).normal(size=(1, 17, 6)).astype(np.float32)
    for length in (17, 12, 1):
        found, counts = adapter(jnp.asarray(x), jnp.array([length]))
        y = torch.tensor(x[:, :length]).transpose(1, 2)
        for layer in params["layers"].values():
            kernel = torch.tensor(layer["kernel"]).permute(2, 1, 0)
            y = torch.nn.functional.conv1d(y, kernel, torch.tensor(layer["bias"]), stride=2, padding=2)
            y = torch.nn.functional.gelu(y, approximate="tanh")
        expected = y.transpose(1, 2).numpy() @ params["out"]["kernel"] + params["out"]["bias"]
        assert counts.tolist() == [expected.shape[1]]
        np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=1e-5)
