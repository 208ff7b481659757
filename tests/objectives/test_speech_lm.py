"""The speech-language model against rows built one by one, and what an objective promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.segments import Segments
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.speech_lm import speech_attention
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.speech_text.speech_lm import Prompt, Prompts, SpeechLM, health_check
from jax_speechlm.planning import costs, hlo
from tests.training import tiny

TOKENIZER = CharTokenizer("abcdefgh ")
BOUNDARY = Vocabulary.of(TOKENIZER).boundary
MODEL = tiny.MODELS["speech_lm"]
CONFIG = SpeechLM(prompts=Prompts(transcribe=Prompt(before="ab", behind="ca")))
FRONT_END = FrontEnd(mel=tiny.MEL)
FAST = MODEL.replace(encoder=FastConformerConfig(input_dim=8, dim=16, num_layers=1, num_heads=2, channels=4))
FAST_FRONT_END = FrontEnd(mel=LogMel(variant="nemo", num_mel_bins=8, stack=1))
ENCODERS = pytest.mark.parametrize(
    ("model", "front_end"), [(MODEL, FRONT_END), pytest.param(FAST, FAST_FRONT_END, marks=pytest.mark.slow)]
)


@functools.cache
def built(config=CONFIG, front_end=FRONT_END, model=MODEL):
    """(parameters, objective, its compiled loss for evaluation)."""
    objective = config.build(model, front_end, TOKENIZER)
    params = functional.init(objective.make, jax.random.key(0))
    return params, objective, jax.jit(lambda params, batch, key=None: objective.loss(params, batch, key))


def batch_of(rows, num_samples=9000, num_tokens=6, seed=0):
    """A batch of (samples, text) rows; None is a filler. What a row holds depends on its text alone."""
    size = len(rows)
    batch = {
        "audio": np.zeros((size, num_samples), np.int16),
        "audio_length": np.zeros(size, np.int32),
        "tokens": np.zeros((size, num_tokens), np.int32),
        "token_length": np.zeros(size, np.int32),
        "example_id": np.array([-1 if row is None else len(row[1]) for row in rows], np.int32),
        "weight": np.array([row is not None for row in rows], np.float32),
    }
    for place, row in enumerate(rows):
        if row is not None:
            length, text = row
            ids = TOKENIZER.encode(text)
            batch["audio"][place, :length] = np.random.default_rng(length).normal(0, 2000, length)
            batch["audio_length"][place], batch["token_length"][place] = length, len(ids)
            batch["tokens"][place, : len(ids)] = ids
    return batch


ROWS = [(8000, "abc"), (5000, "hgf ed"), (3000, "b"), (6500, "")]


@ENCODERS
def test_the_loss_is_that_of_rows_built_one_by_one(model, front_end):
    """Each row alone, without padding, its vectors laid side by side by numpy, its probabilities written out."""
    params, objective, loss = built(CONFIG, front_end, model)
    graphdef = functional.declare(objective.make).graphdef
    nats, right, count = 0.0, 0, 0
    for length, text in ROWS[:3]:
        model = functional.bind(graphdef, params)
        x, frames = features(jax.tree.map(jnp.asarray, batch_of([(length, text)], length)), front_end, None)
        speech, num_speech = model.encode_speech(x, frames)
        ids = TOKENIZER.encode(text)
        table = np.asarray(params["transformer"]["embedding"])
        before, behind = [BOUNDARY, *TOKENIZER.encode("ab")], TOKENIZER.encode("ca")
        row = np.concatenate([table[before], speech[0, : int(num_speech[0])], table[behind], table[ids]])[None]
        place = jnp.arange(row.shape[1])[None]
        hidden, _ = model.transformer.encode(jnp.asarray(row), place * 0 + 1, place)
        log_probs = jax.nn.log_softmax(model.transformer.logits(hidden))[0]
        start = len(before) + int(num_speech[0]) + len(behind)
        for offset, token in enumerate([*ids, BOUNDARY]):
            nats -= float(log_probs[start - 1 + offset, token])
            right += int(log_probs[start - 1 + offset].argmax() == token)
            count += 1
    found, metrics = loss(params, batch_of([*ROWS, None]))
    assert metrics["loss"][1] == count == 13
    np.testing.assert_allclose(float(metrics["loss"][0]), nats, rtol=1e-5)
    np.testing.assert_allclose(float(found), nats / count, rtol=1e-5)
    assert int(metrics["accuracy"][0]) == right
    assert [float(each) for each in metrics["unanswered"]] == [1, 4]  # the row without text is counted, and not learnt


def test_a_row_is_laid_out_without_a_gap():
    graphdef = functional.declare(built()[1].make).graphdef
    params = built()[0]
    model = functional.bind(graphdef, params)
    width = MODEL.transformer.dim
    speech = -jnp.arange(1, 2 * 4 * width + 1, dtype=jnp.float32).reshape(2, 4, width)
    answer = jnp.array([[[5, 6, 7]], [[8, 1, 1]]]), jnp.array([[3], [1]])
    found = model.lay_out(np.array([3, 4]), speech, jnp.array([4, 2]), np.array([2]), *answer, num_text=6)
    table = np.asarray(params["transformer"]["embedding"])
    rows = [
        np.concatenate([table[[3, 4]], speech[0], table[[2, 5, 6, 7]]]),
        np.concatenate([table[[3, 4]], speech[1, :2], table[[2, 8]]]),
    ]
    assert found.segment.tolist() == [[1] * 10, [1] * 6 + [0] * 4]
    assert found.start.tolist() == [[7], [5]]
    assert found.is_speech.tolist() == [[False] * 2 + [True] * 4 + [False] * 4, [False] * 2 + [True] * 2 + [False] * 6]
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(found.vectors[place, : len(row)], row)
        np.testing.assert_array_equal(found.position[place, : len(row)], np.arange(len(row)))


def test_utterances_of_a_row_are_laid_out_one_after_another():
    params, objective, _ = built()
    model = functional.bind(functional.declare(objective.make).graphdef, params)
    width = MODEL.transformer.dim
    speech = -jnp.arange(1, 7 * width + 1, dtype=jnp.float32).reshape(1, 7, width)
    lie = Segments(jnp.array([[0, 2, 4, 0]]), jnp.array([[1, 2, 3, 0]]))
    answer = jnp.array([[[5, 6, 7], [1, 1, 1], [8, 9, 1], [0, 0, 0]]]), jnp.array([[3, 0, 2, 0]])
    present = jnp.array([[True, True, True, False]])
    found = model.lay_out(np.array([3, 4]), speech, lie, np.array([2]), *answer, num_text=15, present_BxN=present)
    table = np.asarray(params["transformer"]["embedding"])
    row = np.concatenate([
        table[[3, 4]], speech[0, :1], table[[2, 5, 6, 7]],
        table[[3, 4]], speech[0, 2:4], table[[2]],
        table[[3, 4]], speech[0, 4:7], table[[2, 8, 9]],
    ])  # fmt: skip
    np.testing.assert_array_equal(found.vectors[0, : len(row)], row)
    assert found.segment.tolist() == [[1] * 7 + [2] * 5 + [3] * 8 + [0] * 2]
    assert found.position[0, :20].tolist() == [*range(7), *range(5), *range(8)]
    assert found.start[0, :3].tolist() == [4, 12, 18]
    assert np.flatnonzero(found.is_speech[0]).tolist() == [2, 9, 10, 14, 15, 16]


def test_frozen_parts_have_no_dropout():
    wet = MODEL.replace(encoder=MODEL.encoder.replace(dropout=0.5), transformer=MODEL.transformer.replace(dropout=0.5))
    params, _, loss = built(CONFIG, FRONT_END, wet)
    expected, _ = loss(params, batch_of(ROWS))
    np.testing.assert_allclose(loss(params, batch_of(ROWS), jax.random.key(3))[0], expected, rtol=1e-6)


def test_the_gauges_are_what_they_say():
    params, _, loss = built()
    _, metrics = loss(params, batch_of(ROWS))
    deaf = params | {"adapter": jax.tree.map(jnp.zeros_like, params["adapter"])}
    _, without = loss(deaf, batch_of(ROWS))
    np.testing.assert_allclose(without["loss"][0], metrics["loss_without_speech"][0], rtol=1e-5)
    gain = metrics["loss_without_speech"][0] - metrics["loss"][0]
    np.testing.assert_allclose(metrics["speech_gain"][0], gain, rtol=1e-4)
    assert float(without["adapter_scale"][0]) == 0
    assert float(without["speech_gain"][0]) == 0
    louder = params | {"adapter": jax.tree.map(lambda leaf: leaf, params["adapter"])}
    louder["adapter"]["contract"] = jax.tree.map(lambda leaf: 3 * leaf, params["adapter"]["contract"])
    ratio = loss(louder, batch_of(ROWS))[1]["adapter_scale"][0] / metrics["adapter_scale"][0]
    np.testing.assert_allclose(ratio, 3, rtol=1e-4)


def test_attention_on_speech_is_the_softmax_written_out():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(1, 7, 4, 6)).astype(np.float32), rng.normal(size=(1, 7, 2, 6)).astype(np.float32)
    is_speech = np.array([[False, True, True, True, False, False, False]])
    model = functional.bind(functional.declare(built()[1].make).graphdef, built()[0])
    no_speech, answer = jnp.zeros((1, 3, MODEL.transformer.dim)), (jnp.ones((1, 1, 2), int), jnp.array([[2]]))
    sequence = model.lay_out(np.array([1]), no_speech, jnp.array([3]), np.array([1]), *answer, num_text=4)
    np.testing.assert_array_equal(sequence.is_speech, is_speech)
    found = speech_attention(jnp.asarray(q), jnp.asarray(k), sequence, jnp.array([[4, 6]]))
    for place, row in enumerate((4, 6)):
        masses = []
        for head in range(4):
            scores = np.exp(q[0, row, head] @ k[0, : row + 1, head // 2].T / np.sqrt(6))
            masses.append(scores[is_speech[0, : row + 1]].sum() / scores.sum())
        np.testing.assert_allclose(found[0, place], np.mean(masses), rtol=1e-5)


def test_a_deaf_model_sets_off_the_alarm():
    listens = {"speech_attention": 0.3, "accuracy": 0.4, "adapter_scale": 1.0, "dev_speech_gain": 0.5}
    listens |= {"dev_loss_without_speech": 2.0}
    assert health_check(listens, True) is None
    assert "0.2% of their attention" in health_check(listens | {"speech_attention": 0.002}, True)
    assert "0.0010 nats" in health_check(listens | {"dev_speech_gain": 0.001}, True)
    assert health_check(listens | {"speech_attention": 0.002}, False) is None
    del listens["dev_speech_gain"]  # before the first validation
    assert health_check(listens, True) is None


@pytest.mark.parametrize("freeze", [(), ("encoder",), ("encoder", "transformer")])
def test_flops_are_a_third_of_a_compiled_steps(freeze):
    """Those of the front end left out, which count for nothing."""
    objective = CONFIG.replace(freeze=freeze).build(MODEL, FRONT_END, TOKENIZER)
    params = functional.init(objective.make, jax.random.key(0))
    kept = {name: params[name] for name in freeze}

    def loss(learnt, batch):
        return objective.loss(learnt | kept, batch, jax.random.key(1))

    learnt = {name: group for name, group in params.items() if name not in freeze}
    batch = batch_of(ROWS)

    def heard(batch):
        return features(batch, FRONT_END, jax.random.key(1))

    whole, front_end = (
        costs.count(hlo.parse(jax.jit(function).lower(*inputs).compile().as_text()), {}).flops
        for function, inputs in ((jax.grad(loss, has_aux=True), (learnt, batch)), (heard, (batch,)))
    )
    assert 3 * objective.flops(batch) == pytest.approx(whole - front_end, rel=0.1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        CONFIG.build(MODEL, FRONT_END, None)
    with pytest.raises(ValueError, match=r"trains an encoder, an adapter and a transformer, not a conformer"):
        CONFIG.build(MODEL.encoder, FRONT_END, TOKENIZER)
    with pytest.raises(ValueError, match=r"set model\.transformer\.causal"):
        MODEL.replace(transformer=TransformerConfig(causal=False))
    with pytest.raises(ValueError, match="crop_seconds"):
        CONFIG.build(MODEL, FRONT_END.replace(augment=Augment(crop_seconds=1.0)), TOKENIZER)
    assert SpeechLM(task="translate").text_column == "translation"
    assert CONFIG.text_column == CTC().text_column == "text"
