"""BEST-RQ's codes, loss and gauges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.augment import SPEC_AUGMENT, Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives import masking
from jax_speechlm.objectives.ssl.best_rq import BestRQ, health_check, nearest_codes

MODEL = ConformerConfig(input_dim=16, dim=8, num_layers=1, num_heads=2, kernel_size=3, left_max=4, right_max=2)
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3, gain_db=3.0))
OBJECTIVE = BestRQ(codes=32, books=2, code_dim=4, mask_span=0.1)
SPAN = 5  # frames of 20 ms in 0.1 s


def test_codes_are_the_nearest_on_the_unit_sphere():
    keys = jax.random.split(jax.random.key(0), 3)
    x, projection, codebook = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(2, 30, 16), (16, 4), (32, 4)], strict=True)
    )
    codebook = codebook / jnp.linalg.norm(codebook, axis=-1, keepdims=True)
    projected = np.asarray(x, np.float64) @ np.asarray(projection, np.float64)
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    distances = np.linalg.norm(projected[:, :, None] - np.asarray(codebook, np.float64), axis=-1)
    np.testing.assert_array_equal(nearest_codes(x, projection, codebook), distances.argmin(-1))


def make_batch(num_samples: int = 32_000) -> dict[str, np.ndarray]:
    """Noise of several lengths, one row of a single frame, one filler row."""
    shares = np.array([1.0, 0.6, 0.8, 0.3, 0.02, 0.0])
    rng = np.random.default_rng(0)
    return {
        "audio": rng.integers(-9000, 9000, (6, num_samples)).astype(np.int16),
        "audio_length": (shares * num_samples).astype(np.int32),
        "example_id": np.arange(6, dtype=np.int32) + 7,
        "weight": (shares > 0).astype(np.float32),
    }


@functools.cache
def compiled():
    """The objective, its parameters and its jitted loss."""
    built = OBJECTIVE.build(MODEL, FRONTEND)
    return built, functional.init(built.make, jax.random.key(0)), jax.jit(built.loss)


def plain_codes(x: np.ndarray, projection: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Returns the code at the least angle to each projected frame (Chiu et al. 2022, section 3.1), in float64."""
    projected = np.asarray(x, np.float64) @ np.asarray(projection, np.float64)
    vectors = projected, np.float64(codebook)  # of a frame of padding all are zeros
    unit = [each / np.maximum(np.linalg.norm(each, axis=-1, keepdims=True), 1e-30) for each in vectors]
    return np.einsum("btd,kd->btk", *unit).argmax(-1)


def test_loss_and_gauges_equal_a_plain_computation(monkeypatch):
    """With a zeroed encoder output the heads see nothing but their bias, so every figure can be written down."""
    built, params, _ = compiled()
    batch = make_batch()
    bias = jax.random.normal(jax.random.key(5), (2, 32))
    params = params | {"head": {"kernel": jnp.zeros_like(params["head"]["kernel"]), "bias": bias}}
    x, lengths = jax.device_get(features(jax.tree.map(jnp.asarray, batch), FRONTEND, None))
    inside = (np.arange(x.shape[1]) < lengths[:, None]) & (batch["weight"][:, None] > 0)
    mask = (np.random.default_rng(3).random(inside.shape) < 0.4) & inside
    monkeypatch.setattr(masking, "draw_mask", lambda *inputs: jnp.asarray(mask))
    _, metrics = jax.jit(lambda *inputs: built.loss(*inputs))(params, batch, None)

    expected = {name: [] for name in metrics}
    for book in range(2):
        codes = plain_codes(x, *(params["quantizer"][name][book] for name in ("projection", "codebook")))
        log_p = np.float64(bias[book])
        log_p -= np.log(np.exp(log_p).sum())
        masked, guess = codes[mask], log_p.argmax()
        probed = np.zeros_like(mask)
        probed[:, ::16] = True
        unmasked = codes[probed & ~mask & (np.arange(mask.shape[1]) < lengths[:, None])]
        share = np.bincount(masked, minlength=32) / len(masked)
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        expected["loss"].append(-log_p[masked].mean())
        expected["masked_accuracy"].append((masked == guess).mean())
        expected["unmasked_accuracy"].append((unmasked == guess).mean())
        expected["code_entropy"].append(entropy)
        expected["code_entropy_ratio"].append(entropy / np.log(32))
        expected["codes_used"].append((share > 0).mean())
        expected["predicted_codes_used"].append(1 / 32)
        expected["predicted_code_entropy"].append(0)
    rank = [metrics.pop(f"representation_{name}") for name in ("rank", "spread")]
    assert all(total > 0 and weight == mask.sum() for total, weight in rank)  # measured in test_gauges
    for name, (total, weight) in metrics.items():
        assert weight == (len(unmasked) if name == "unmasked_accuracy" else mask.sum())
        np.testing.assert_allclose(total / weight, np.mean(expected[name]), rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_crop_moves_input_and_targets_together(monkeypatch):
    frontend = FRONTEND.replace(augment=Augment(crop_seconds=1.0, time_masks=1, time_mask_ratio=0.0))  # masks nothing
    built, batch = OBJECTIVE.build(MODEL, frontend), make_batch()

    @jax.jit
    def both(params, batch):
        seen = []
        monkeypatch.setattr(masking, "features", lambda *inputs: seen.append(features(*inputs)) or seen[-1])
        built.loss(params, batch, jax.random.key(0))
        return seen

    (x, segments), (targets, _) = both(compiled()[1], batch)
    assert segments.length.max() < batch["audio_length"].max() // frontend.mel.frame_samples
    np.testing.assert_array_equal(x, targets)


def test_alarm_when_codes_or_predictions_collapse():
    healthy = {"code_entropy_ratio": 0.8, "code_entropy": 4.0, "predicted_code_entropy": 1.5}
    healthy |= {"representation_rank": 9.0, "representation_spread": 0.7}
    assert health_check(healthy, True) is None
    assert "normalised" in health_check(healthy | {"code_entropy_ratio": 0.1}, False)
    constant = healthy | {"predicted_code_entropy": 0.4}
    assert health_check(constant, False) is None  # every model begins like that
    assert "10% of the targets'" in health_check(constant, True)
    assert "the hidden states have collapsed" in health_check(healthy | {"representation_rank": 1.2}, True)
    assert "codes have collapsed" in health_check(dict.fromkeys(healthy, 0.0), True)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"--model.input_dim 16"):
        OBJECTIVE.build(MODEL.replace(input_dim=160), FRONTEND)
    with pytest.raises(ValueError, match="normalize"):
        OBJECTIVE.build(MODEL, FRONTEND.replace(mel=FRONTEND.mel.replace(normalize=False)))
