"""Quantizer, contrastive loss and diversity loss, values and gradients, against Hugging Face's wav2vec 2.0, live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.batch import example_keys
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import fold_in, split_keys
from jax_speechlm.objectives.masking import Views, masked_places
from jax_speechlm.objectives.ssl.contrastive import Contrast, Encoded, Frames, contrast, draw_negatives
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2

pytestmark = pytest.mark.parity
CONFIG = Wav2Vec2(groups=2, codes=20, code_dim=16, negatives=10, diversity_weight=0.3)
BATCH, TIME, DIM, MASKED = 3, 30, 12, 14
ENCODER = ConformerConfig(input_dim=DIM, dim=DIM, num_layers=1, num_heads=2)


def make(rngs):
    return Contrast(CONFIG, ENCODER, rngs=rngs)


@pytest.fixture
def reference():
    """Hugging Face's model with an encoder that gives back what it is given, and our parameters in it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2BaseModelOutput

    config = transformers.Wav2Vec2Config(
        hidden_size=DIM, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(DIM,),
        conv_stride=(2,), conv_kernel=(2,), num_feat_extract_layers=1, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_codevector_groups=CONFIG.groups, num_codevectors_per_group=CONFIG.codes,
        codevector_dim=CONFIG.code_dim, proj_codevector_dim=CONFIG.code_dim, feat_quantizer_dropout=0.0,
        diversity_loss_weight=CONFIG.diversity_weight, contrastive_logits_temperature=CONFIG.temperature,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForPreTraining(config).train()

    class Given(torch.nn.Module):
        def forward(self, inputs, **_):
            return Wav2Vec2BaseModelOutput(last_hidden_state=inputs[0], extract_features=inputs[1])

    model.wav2vec2 = Given()
    params = functional.init(make, jax.random.key(0))

    def put(parameter, value):
        return parameter.data.copy_(torch.tensor(np.array(value)))

    choice, groups_codes = params["quantizer"]["logits"], CONFIG.groups * CONFIG.codes
    put(model.quantizer.weight_proj.weight, choice["kernel"].reshape(DIM, groups_codes).T)
    put(model.quantizer.weight_proj.bias, choice["bias"].reshape(-1))
    put(model.quantizer.codevectors, params["quantizer"]["codebook"].reshape(1, groups_codes, -1))
    for linear, ours in ((model.project_hid, "context"), (model.project_q, "target")):
        put(linear.weight, params[ours]["kernel"].T)
        put(linear.bias, params[ours]["bias"])
    return torch, model, params


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_losses_and_gradients_equal_hugging_faces(reference, monkeypatch, temperature):
    torch, model, params = reference
    config = CONFIG.replace(gumbel_temperature=(temperature, temperature))
    rng = np.random.default_rng(0)
    target = rng.normal(size=(BATCH, TIME, DIM)).astype(np.float32)
    hidden = rng.normal(size=(BATCH, TIME, DIM)).astype(np.float32)
    mask = np.zeros((BATCH, TIME), bool)
    for row in mask:
        row[rng.permutation(TIME)[:MASKED]] = True
    keys_B = example_keys(jax.random.key(1), jnp.arange(BATCH))
    places = masked_places(jnp.asarray(mask), MASKED)
    noise_keys, masked_keys, _ = split_keys(keys_B, 3)

    def ours(params, hidden, target):
        segments, keys_BxN = Segments.of(jnp.full(BATCH, TIME)), keys_B[:, None]
        views = Views(target, target, segments, segments, jnp.asarray(mask), keys_BxN, keys_BxN, None)
        inside = jnp.ones((BATCH, TIME))
        masked, probed = Frames(places, jnp.ones((BATCH, MASKED))), Frames(places[:, :1], jnp.zeros((BATCH, 1)))
        encoded = Encoded(views, {}, target, masked, probed, inside)
        module = functional.bind(functional.declare(make).graphdef, params)
        sums, _, _ = contrast(module, config, encoded, hidden, {"step": jnp.int32(0)})
        return sums["contrastive"] + config.diversity_weight * sums["diversity"], sums

    (loss, sums), gradients = jax.value_and_grad(ours, argnums=(0, 1, 2), has_aux=True)(
        params, jnp.asarray(hidden), jnp.asarray(target)
    )

    # The same draws for both: negatives as places in the batch, and the noise of the choices, at masked frames.
    rank = jnp.tile(jnp.arange(MASKED), (BATCH, 1))
    frame_keys = fold_in(jnp.repeat(masked_keys[:, None], MASKED, axis=1), rank)
    drawn = draw_negatives(frame_keys, rank * 0, rank * 0 + MASKED, rank, MASKED, config.negatives)
    count = np.asarray(drawn).astype(int)
    indices = np.zeros((BATCH, TIME, config.negatives), np.int64)
    noise = np.zeros((BATCH, TIME, config.groups, config.codes), np.float32)
    for b in range(BATCH):
        frames = np.asarray(places[b])
        for i, frame in enumerate(frames):
            indices[b, frame] = b * TIME + np.repeat(frames, count[b, i])
            key = jax.random.fold_in(noise_keys[b], frame)
            noise[b, frame] = jax.random.gumbel(key, (config.groups, config.codes))

    def gumbel_softmax(logits, tau, hard):
        soft = torch.softmax((logits + torch.tensor(noise).reshape(logits.shape)) / tau, -1)
        one_hot = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1])
        return one_hot - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    model.set_gumbel_temperature(temperature)
    inputs = [torch.tensor(each, requires_grad=True) for each in (hidden, target)]
    out = model(inputs, mask_time_indices=torch.tensor(mask), sampled_negative_indices=torch.tensor(indices))
    out.loss.backward()

    np.testing.assert_allclose(sums["contrastive"], out.contrastive_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(sums["diversity"], out.diversity_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    for found, given in zip(gradients[1:], inputs, strict=True):
        np.testing.assert_allclose(found, given.grad, rtol=2e-3, atol=1e-4)
    grads, width = gradients[0], CONFIG.groups * CONFIG.codes
    pairs = [
        (grads["quantizer"]["logits"]["kernel"].reshape(DIM, width).T, model.quantizer.weight_proj.weight),
        (grads["quantizer"]["codebook"].reshape(1, width, -1), model.quantizer.codevectors),
        (grads["context"]["kernel"].T, model.project_hid.weight),
        (grads["target"]["kernel"].T, model.project_q.weight),
    ]
    for found, theirs in pairs:
        np.testing.assert_allclose(found, theirs.grad, rtol=2e-3, atol=2e-4)
