"""HuBERT's loss and gauges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.augment import SPEC_AUGMENT, Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives import masking
from jax_speechlm.objectives.ssl.hubert import HuBERT, health_check

MODEL = ConformerConfig(input_dim=16, dim=8, num_layers=1, num_heads=2, kernel_size=3, left_max=4, right_max=2)
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3, gain_db=3.0))
OBJECTIVE = HuBERT(num_units=7, code_dim=4, mask_span=0.1, mask_ratio=0.4, unmasked_weight=0.3)


def make_batch(num_samples: int = 32_000) -> dict[str, np.ndarray]:
    """Noise of several lengths, one row of a single frame, one filler row, one without codes."""
    shares = np.array([1.0, 0.6, 0.8, 0.3, 0.02, 0.0])
    rng = np.random.default_rng(0)
    length = (shares * num_samples).astype(np.int32)
    codes = rng.integers(0, 7, (6, FRONTEND.mel.num_frames(num_samples))).astype(np.int32)
    codes[np.arange(codes.shape[1]) >= np.array(FRONTEND.mel.num_frames(length))[:, None]] = -1
    codes[3] = -1
    return {
        "audio": rng.integers(-9000, 9000, (6, num_samples)).astype(np.int16),
        "audio_length": length,
        "frame_labels": codes,
        "example_id": np.arange(6, dtype=np.int32) + 7,
        "weight": (shares > 0).astype(np.float32),
    }


@functools.cache
def compiled():
    """The objective, its parameters and its jitted loss."""
    built = OBJECTIVE.build(MODEL, FRONTEND)
    return built, functional.init(built.make, jax.random.key(0)), jax.jit(built.loss)


def test_loss_and_gauges_equal_a_plain_computation():
    built, params, run = compiled()
    batch = make_batch()
    _, metrics = run(params, batch, None)

    model = functional.bind(functional.declare(built.make).graphdef, params)
    views = masking.draw_views(jax.tree.map(jnp.asarray, batch), None, FRONTEND, MODEL, 5, 0.4)
    x = jnp.where(views.mask_BxT[..., None], params["mask"], model.encoder.embed(views.x_BxTxF))
    hidden = np.asarray(model.encoder.encode(x, views.segments)[0], np.float64)
    units = {name: np.asarray(leaf, np.float64) for name, leaf in params["units"]["projection"].items()}
    projected = hidden @ units["kernel"] + units["bias"]
    embedding = np.asarray(params["units"]["embedding"], np.float64)
    loss, hits, weights, masked_codes, guesses = 0.0, {True: [], False: []}, 0.0, [], []
    for row in range(6):
        for frame in range(views.segments.length[row, 0]):
            code, masked = batch["frame_labels"][row, frame], bool(views.mask_BxT[row, frame])
            if code < 0 or not batch["weight"][row]:
                continue
            p = projected[row, frame]
            cosine = [p @ e / (np.linalg.norm(p) * np.linalg.norm(e)) for e in embedding]
            odds = np.exp(np.array(cosine) / 0.1)
            weight = 1.0 if masked else 0.3
            loss -= weight * np.log(odds[code] / odds.sum())
            weights += weight
            hits[masked].append(odds.argmax() == code)
            if masked:
                masked_codes.append(code)
                guesses.append(odds.argmax())
    share, predicted = (np.bincount(codes, minlength=7) / len(codes) for codes in (masked_codes, guesses))

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    expected = {
        "loss": loss / weights,
        "masked_accuracy": np.mean(hits[True]),
        "unmasked_accuracy": np.mean(hits[False]),
        "code_entropy": entropy(share),
        "code_entropy_ratio": entropy(share) / np.log(7),
        "codes_used": (share > 0).mean(),
        "predicted_code_entropy": entropy(predicted),
        "predicted_codes_used": (predicted > 0).mean(),
    }
    assert {*metrics} == {*expected, "representation_rank", "representation_spread"}
    for name, value in expected.items():
        total, weight = metrics[name]
        np.testing.assert_allclose(total / weight, value, rtol=1e-4, err_msg=name)
    assert metrics["loss"][1] == pytest.approx(weights)
    assert all(metrics[f"representation_{name}"][0] > 0 for name in ("rank", "spread"))


def test_only_masked_frames_count_unless_asked(monkeypatch):
    """And what lies behind a mask is not seen."""
    built = OBJECTIVE.replace(unmasked_weight=0.0).build(MODEL, FRONTEND)
    params, batch = compiled()[1], make_batch()
    total, weight = jax.jit(built.loss)(params, batch, None)[1]["loss"]
    batch = jax.tree.map(jnp.asarray, batch)
    mask = np.asarray(masking.draw_views(batch, None, FRONTEND, MODEL, 5, 0.4).mask_BxT)
    other = np.array(batch["frame_labels"])
    other[~mask & (other >= 0)] = 0
    same, count = jax.jit(built.loss)(params, batch | {"frame_labels": other}, None)[1]["loss"]
    assert (same, count) == (total, weight)
    assert weight == (mask & (batch["frame_labels"] >= 0) & (batch["weight"] > 0)[:, None]).sum()

    draw_views = masking.draw_views

    def blind(batch, *inputs):
        views = draw_views(batch, *inputs)
        return views._replace(x_BxTxF=jnp.where(mask[..., None] & batch["blind"], 1e3, views.x_BxTxF))

    monkeypatch.setattr(masking, "draw_views", blind)
    loss = jax.jit(OBJECTIVE.replace(unmasked_weight=0.0).build(MODEL, FRONTEND).loss)  # traced anew
    # In one program, which rounds alike: another need not.
    seen, unseen = (loss(params, batch | {"blind": jnp.array(each)}, None)[1]["loss"] for each in (False, True))
    assert seen == unseen
    assert seen[1] == weight


def test_alarm_when_units_or_predictions_or_hidden_states_collapse():
    healthy = {"code_entropy_ratio": 0.8, "code_entropy": 4.0, "predicted_code_entropy": 1.5}
    healthy |= {"representation_rank": 9.0, "representation_spread": 0.7}
    assert health_check(healthy, True) is None
    assert "units report" in health_check(healthy | {"code_entropy_ratio": 0.1}, False)
    constant = healthy | {"predicted_code_entropy": 0.4}
    assert health_check(constant, False) is None  # every model begins like that
    assert "HuBERT's predictions have collapsed: their entropy is 10%" in health_check(constant, True)
    assert "the hidden states have collapsed" in health_check(healthy | {"representation_rank": 1.2}, True)


def test_a_collapse_shows_in_the_gauges():
    """Units that are nearly all one, and a head that always says the same."""
    _, params, run = compiled()
    batch = make_batch()
    batch["frame_labels"] = np.where(batch["frame_labels"] >= 0, 2, -1).astype(np.int32)
    figures = {name: float(total / weight) for name, (total, weight) in run(params, batch, None)[1].items()}
    assert "HuBERT's codes have collapsed" in health_check(figures, False)
    flat = jax.tree.map(np.zeros_like, params["units"]["projection"]) | {"bias": np.ones(4, np.float32)}
    constant = params | {"units": params["units"] | {"projection": flat}}
    figures = {name: float(total / weight) for name, (total, weight) in run(constant, make_batch(), None)[1].items()}
    assert "predictions have collapsed" in health_check(figures, True)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"--model.input_dim 16"):
        OBJECTIVE.build(MODEL.replace(input_dim=160), FRONTEND)
    with pytest.raises(ValueError, match=r"crop_seconds.*data\.max_crop"):
        OBJECTIVE.build(MODEL, FRONTEND.replace(augment=Augment(crop_seconds=1.0)))
    batch = make_batch()
    _, params, run = compiled()
    with pytest.raises(ValueError, match="made with another front end"):
        run(params, batch | {"frame_labels": batch["frame_labels"][:, :-1]}, None)
