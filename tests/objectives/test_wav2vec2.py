"""wav2vec 2.0 and w2v-BERT: their losses against plain loops, their invariances, and their alarms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.augment import SPEC_AUGMENT
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import fold_in, split_keys
from jax_speechlm.objectives.masking import draw_views
from jax_speechlm.objectives.ssl import w2v_bert, wav2vec2
from jax_speechlm.objectives.ssl.contrastive import draw_negatives
from jax_speechlm.objectives.ssl.w2v_bert import W2vBert
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2

MODEL = ConformerConfig(input_dim=16, dim=8, num_layers=3, num_heads=2, kernel_size=3, left_max=4, right_max=2)
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3, gain_db=3.0))
SETTINGS = {"groups": 2, "codes": 12, "code_dim": 8, "negatives": 7, "mask_span": 0.1}
OBJECTIVES = {"wav2vec2": Wav2Vec2(**SETTINGS), "w2v_bert": W2vBert(**SETTINGS, contrastive_weight=0.7)}
ALARMS = {"wav2vec2": wav2vec2.health_check, "w2v_bert": w2v_bert.health_check}
LAYERS_BELOW = {"wav2vec2": 3, "w2v_bert": 1}
SPAN = 5  # frames of 20 ms in 0.1 s
both = pytest.mark.parametrize("kind", OBJECTIVES)


def make_batch(num_samples: int = 32_000) -> dict[str, np.ndarray]:
    """Noise whose colour changes, of several lengths, one row of a single frame, one filler row."""
    shares = np.array([1.0, 0.6, 0.8, 0.3, 0.02, 0.0])
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 3000, (6, num_samples))
    loudness = np.repeat(rng.uniform(0.05, 1, (6, num_samples // 1600)), 1600, axis=1)
    return {
        "audio": (loudness * noise).astype(np.int16),
        "audio_length": (shares * num_samples).astype(np.int32),
        "example_id": np.arange(6, dtype=np.int32) + 7,
        "weight": (shares > 0).astype(np.float32),
        "step": np.int32(3),
    }


@functools.cache
def compiled(kind: str):
    """The objective, its parameters, its jitted loss and gradient."""
    built = OBJECTIVES[kind].build(MODEL, FRONTEND)
    params = functional.init(built.make, jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda *inputs: built.loss(*inputs)[0]))
    return built, params, jax.jit(built.loss), gradient


def means(metrics) -> dict[str, float]:
    return {name: float(total / max(weight, 1e-9)) for name, (total, weight) in jax.device_get(metrics).items()}


def linear(weights, x):
    return np.tensordot(x, np.asarray(weights["kernel"], np.float64), 1) + np.asarray(weights["bias"], np.float64)


@both
def test_loss_equals_a_loop_over_masked_frames(kind):
    """From the encoder's outputs and the draws on, all is computed again: one frame and one negative at a time."""
    config, (_, params, run, _), batch = OBJECTIVES[kind], compiled(kind), jax.tree.map(jnp.asarray, make_batch())
    found = means(run(params, batch, None)[1])

    views = draw_views(batch, None, FRONTEND, MODEL, SPAN, config.mask_ratio)
    encoder = functional.bind(functional.declare(lambda rngs: Conformer(MODEL, rngs=rngs)).graphdef, params["encoder"])
    shown = jnp.where(views.mask_BxT[..., None], params["contrast"]["mask"], encoder.embed(views.x_BxTxF))
    hidden, taps = encoder.encode(shown, views.segments, taps=(LAYERS_BELOW[kind],))
    target, below = np.asarray(encoder.embed(views.clean_BxTxF), np.float64), taps[LAYERS_BELOW[kind]]
    num = views.mask_BxT.sum(-1)
    _, keys, _ = split_keys(views.keys_BxN[:, 0], 3)
    rank = jnp.tile(jnp.arange(int(num.max())), (len(num), 1))
    keys = fold_in(jnp.repeat(keys[:, None], rank.shape[1], axis=1), rank)
    first, num = jnp.zeros_like(rank), jnp.broadcast_to(num[:, None], rank.shape)
    count = np.asarray(draw_negatives(keys, first, num, rank, rank.shape[1], config.negatives))

    weights, codebook = params["contrast"], np.asarray(params["contrast"]["quantizer"]["codebook"])
    nll, right, codes, probs, named, hits = [], [], [], [], [], []
    for b in range(6):
        frames = np.flatnonzero(views.mask_BxT[b]) if batch["weight"][b] else []
        logits = linear(weights["quantizer"]["logits"], target[b, frames])
        code = logits.argmax(-1)
        vectors = np.array([np.concatenate(codebook[[0, 1], each]) for each in code]).reshape(-1, 8)
        quantized, context = (
            linear(weights["target"], vectors),
            linear(weights["context"], np.asarray(below)[b, frames]),
        )
        for i in range(len(frames)):
            similarity = quantized @ context[i] / np.linalg.norm(quantized, axis=1) / np.linalg.norm(context[i]) / 0.1
            others = [
                similarity[j]
                for j in range(len(frames))
                for _ in range(int(count[b, i, j]))
                if (code[j] != code[i]).any()
            ]
            nll.append(np.log(np.exp([similarity[i], *others]).sum()) - similarity[i])
            right.append(bool(others) and similarity[i] > max(others))
        codes.extend(code)
        probs.extend(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
        if kind == "w2v_bert":
            scores = linear(params["head"], np.asarray(hidden)[b, frames])
            log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
            named.extend(-np.take_along_axis(log_p, code[..., None], -1).mean((1, 2)))
            hits.extend((log_p.argmax(-1) == code).mean(-1))

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    shares = [np.bincount(group, minlength=12) / len(codes) for group in np.array(codes).T]
    expected = {
        "contrastive": np.mean(nll),
        "diversity": (24 - sum(np.exp(entropy(p)) for p in np.mean(probs, 0))) / 24,
        "code_entropy": np.mean([entropy(p) for p in shares]),
        "code_entropy_ratio": min(entropy(p) for p in shares) / np.log(12),
        "code_perplexity": np.mean([np.exp(entropy(p)) for p in shares]),
        "codes_used_0": (shares[0] > 0).mean(),
        "codes_used_1": (shares[1] > 0).mean(),
        "masked_accuracy": np.mean(right),
    }
    expected["loss"] = expected["contrastive"] + 0.1 * expected["diversity"]
    if kind == "w2v_bert":
        expected |= {"prediction": np.mean(named), "masked_accuracy": np.mean(hits)}
        expected |= {"contrastive_accuracy": np.mean(right), "loss": np.mean(named) + 0.7 * expected["loss"]}
    for name, value in expected.items():
        np.testing.assert_allclose(found.pop(name), value, rtol=2e-4, atol=1e-5, err_msg=name)
    assert set(found) <= {"unmasked_accuracy", "representation_rank", "representation_spread", "predicted_code_entropy"}


def test_the_step_changes_the_temperature_of_gradients_and_nothing_else():
    _, params, run, gradient = compiled("wav2vec2")
    batch, key = make_batch(), jax.random.key(0)
    late = batch | {"step": np.int32(10**6)}
    assert run(params, batch, key)[0] == run(params, late, key)[0]
    first, last = (gradient(params, each, key)["contrast"]["quantizer"] for each in (batch, late))
    np.testing.assert_allclose(first["codebook"], last["codebook"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(first["logits"]["kernel"], last["logits"]["kernel"], rtol=0.05)


@both
def test_a_healthy_model_raises_no_alarm_and_a_collapsed_one_does(kind):
    """The figures come from the loss itself, of models that are made to collapse."""
    _, params, run, _ = compiled(kind)

    def measure(params):
        return means(run(params, make_batch(), jax.random.key(0))[1])

    def edit(path, value):
        return functools.reduce(lambda leaf, name: {name: leaf}, reversed(path), value)

    def merged(tree, change):
        return tree | {
            name: merged(tree[name], value) if isinstance(value, dict) else value for name, value in change.items()
        }

    healthy = measure(params)
    one_code = {"kernel": jnp.zeros((8, 2, 12)), "bias": 50.0 * jax.nn.one_hot(jnp.zeros(2, int), 12)}
    collapsed = measure(merged(params, edit(("contrast", "quantizer", "logits"), one_code)))
    assert collapsed["contrastive"] == 0  # nothing to tell apart: the loss alone looks splendid
    assert collapsed["masked_accuracy"] == (0 if kind == "wav2vec2" else collapsed["masked_accuracy"])
    health_check = ALARMS[kind]
    assert "codes have collapsed" in health_check(collapsed, True)
    assert health_check(collapsed, False) is None
    scale = params["encoder"]["layers"]["norm"]["scale"]
    constant = measure(merged(params, edit(("encoder", "layers", "norm", "scale"), scale.at[-1].set(0.0))))
    if kind == "wav2vec2":
        assert health_check(healthy, True) is None
        assert "hidden states have collapsed" in health_check(constant, True)
    else:
        assert "predictions have collapsed" in health_check(constant, True)
        spread = healthy | {"predicted_code_entropy": 0.9 * healthy["code_entropy"]}
        assert health_check(spread, True) is None
        assert "hidden states have collapsed" in health_check(spread | {"representation_rank": 1.0}, True)


def test_what_does_not_fit_is_refused():
    for objective in OBJECTIVES.values():
        with pytest.raises(ValueError, match=r"--model.input_dim 16"):
            objective.build(MODEL.replace(input_dim=160), FRONTEND)
    with pytest.raises(ValueError, match=r"needs layers above the 3 .* set objective.contrastive_layers below"):
        OBJECTIVES["w2v_bert"].replace(contrastive_layers=3).build(MODEL, FRONTEND)
    with pytest.raises(ValueError, match="needs layers above the 0"):
        OBJECTIVES["w2v_bert"].build(MODEL.replace(num_layers=1), FRONTEND)
