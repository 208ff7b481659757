"""The loss of an attention encoder-decoder against rows built one by one, and what its settings require."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.objectives.asr.whisper_tokens import WhisperTokens
from tests.training import tiny

TOKENIZER = CharTokenizer("abcdefgh ")
VOCABULARY = Vocabulary.of(TOKENIZER)
MODEL: EncoderDecoderConfig = tiny.MODELS["aed"]
FRONT_END = FrontEnd(mel=tiny.MELS["aed"])
TOKENS = WhisperTokens(start=3, no_timestamps=5)
ROWS = [(8000, "abc"), (5000, "hgf ed"), (0, "b"), (6500, "")]


@functools.cache
def built(config):
    objective = config.build(MODEL, FRONT_END, TOKENIZER)
    return functional.init(objective.make, jax.random.key(0)), objective, jax.jit(objective.loss)


def batch_of(rows, num_samples=9000, num_tokens=6):
    batch = {
        "audio": np.zeros((len(rows), num_samples), np.int16),
        "audio_length": np.array([length for length, _ in rows], np.int32),
        "tokens": np.zeros((len(rows), num_tokens), np.int32),
        "token_length": np.array([len(text) for _, text in rows], np.int32),
        "example_id": np.arange(len(rows), dtype=np.int32),
        "weight": np.ones(len(rows), np.float32),
    }
    for row, (length, text) in enumerate(rows):
        batch["audio"][row, :length] = np.random.default_rng(length).normal(0, 2000, length)
        batch["tokens"][row, : len(text)] = TOKENIZER.encode(text)
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("whisper", [None, TOKENS])
def test_the_loss_is_that_of_rows_built_one_by_one(smoothing, whisper):
    params, objective, loss = built(AED(label_smoothing=smoothing, whisper=whisper))
    model = functional.bind(functional.declare(objective.make).graphdef, params)
    prompt = [VOCABULARY.boundary] if whisper is None else [3, 5]
    may_follow, nats, plain, right, count = VOCABULARY.may_follow(), 0.0, 0.0, 0, 0
    for row in (ROWS[0], ROWS[1], ROWS[3]):  # without frames there is nothing to learn
        text = [*TOKENIZER.encode(row[1]), VOCABULARY.boundary]
        source = model.read_speech(*features(batch_of([row], max(row[0], 1)), FRONT_END, None))
        tokens = jnp.array([[*prompt, *text[:-1]]])
        position = jnp.arange(tokens.shape[1])[None]
        logits = model.decoder.logits(model.decoder(tokens, jnp.ones_like(tokens), position, source))
        log_probs = np.asarray(jax.nn.log_softmax(logits))[0, len(prompt) - 1 :]
        for each, token in zip(log_probs, text, strict=True):
            target = smoothing * may_follow / may_follow.sum()
            target[token] += 1 - smoothing
            nats, plain = nats - target @ each, plain - each[token]
            right, count = right + int(each.argmax() == token), count + 1
    total, metrics = loss(params, batch_of(ROWS), None)
    assert float(metrics["loss"][1]) == count == 12
    np.testing.assert_allclose(float(metrics["loss"][0]), nats, rtol=1e-5)
    np.testing.assert_allclose(float(total), nats / count, rtol=1e-5)
    np.testing.assert_allclose(float(metrics.get("cross_entropy", metrics["loss"])[0]), plain, rtol=1e-5)
    assert int(metrics["accuracy"][0]) == right


def test_with_a_ctc_head_the_loss_is_a_mixture_of_both():
    params, objective, loss = built(AED(label_smoothing=0.3, ctc_weight=0.4))
    total, metrics = loss(params, batch_of(ROWS), None)
    plain = {name: params[name] for name in ("encoder", "decoder")}
    _, alone = built(AED(label_smoothing=0.3))[2](plain, batch_of(ROWS), None)
    logits, lengths = objective.logits(params, batch_of(ROWS))
    nats = 0.0
    for row, (_, text) in enumerate(ROWS):
        if length := int(lengths[row]):
            labels = jnp.array([TOKENIZER.encode(text) or [1]])
            padding = jnp.zeros((1, length)), labels, jnp.full(labels.shape, not text)
            nats += optax.ctc_loss(jax.nn.log_softmax(logits[row : row + 1, :length]), *padding)[0]
    np.testing.assert_allclose(metrics["ctc"], (nats, 12), rtol=1e-5)
    np.testing.assert_allclose(metrics["attention"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(total, (0.4 * nats + 0.6 * alone["loss"][0]) / 12, rtol=1e-5)
    assert [float(each) for each in metrics["infeasible"]] == [1, 4]


def test_with_lora_only_the_updates_are_trained():
    model = MODEL.replace(lora=LoRA(rank=2, targets=MODEL.lora.targets))
    objective = AED(freeze=("encoder", "decoder")).build(model, FRONT_END, TOKENIZER)
    params = functional.init(objective.make, jax.random.key(0))
    assert set(params["lora"]) == {"encoder", "decoder"}
    assert objective.frozen == ("encoder", "decoder")
    key = jax.random.key(1)
    loss, plain = objective.loss(params, batch_of(ROWS), key)[0], built(AED())[1]
    without = plain.loss({name: params[name] for name in ("encoder", "decoder")}, batch_of(ROWS), None)[0]
    np.testing.assert_allclose(loss, without, rtol=1e-6)  # frozen groups have no dropout, and an update begins as 0


def test_the_prompt_is_that_of_the_model_and_the_task():
    many = TOKENS.model_copy(update={"languages": (("en", 7), ("de", 8)), "transcribe": 1, "translate": 2})
    assert AED().prompt_ids(TOKENIZER).tolist() == [VOCABULARY.boundary]
    assert AED(whisper=TOKENS).prompt_ids(TOKENIZER, timestamps=True).tolist() == [3]
    translate = AED(whisper=many, language="de", task="translate")
    assert translate.prompt_ids(TOKENIZER).tolist() == [3, 8, 2, 5]
    assert translate.text_column == "translation"
    with pytest.raises(ValueError, match=r"objective.language is None; this Whisper has de, en"):
        AED(whisper=many).prompt_ids(TOKENIZER)
    with pytest.raises(ValueError, match="transcribes English only"):
        AED(whisper=TOKENS, language="de").prompt_ids(TOKENIZER)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="aed trains an encoder with an attention decoder, not a conformer"):
        AED().build(tiny.MODEL, FRONT_END, TOKENIZER)
    with pytest.raises(
        ValueError, match=r"windows of 2 s, 100 frames.*positions for 50: .*window_seconds to at most 1"
    ):
        AED().build(MODEL, FrontEnd(mel=WhisperMel(num_mel_bins=16, window_seconds=2)), TOKENIZER)
    with pytest.raises(ValueError, match="would cut audio away from under its transcript"):
        AED().build(MODEL, FrontEnd(mel=tiny.MELS["aed"], augment=Augment(crop_seconds=1.0)), TOKENIZER)
    objective = AED().build(MODEL, FRONT_END, TOKENIZER)
    params = jax.eval_shape(lambda: functional.init(objective.make, jax.random.key(0)))
    with pytest.raises(ValueError, match="up to 31 tokens with its prompt is longer than the 20 positions"):
        jax.eval_shape(lambda params: objective.loss(params, batch_of(ROWS, num_tokens=30), None), params)
