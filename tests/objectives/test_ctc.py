"""The CTC loss against an oracle that enumerates alignments and against torch's numbers; the objective's promises."""

import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import SPEC_AUGMENT, Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc import CTC, consistency_loss
from jax_speechlm.objectives.asr.ctc_loss import ctc_loss

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = CharTokenizer("abcdefgh")
VOCAB = TOKENIZER.vocab_size


@functools.cache
def compiled():
    """Losses, feasibility, and the gradient of the sum of losses."""

    def run(logits, *rest):
        (_, aux), gradient = jax.value_and_grad(lambda x: _with_aux(ctc_loss(x, *rest)), has_aux=True)(logits)
        return *aux, gradient

    def _with_aux(result):
        return result[0].sum(), result

    return jax.jit(run)


def enumerated_loss(logits: np.ndarray, tokens: list[int]) -> float:
    """Minus the log of the summed probability of every frame labelling that collapses to the tokens."""
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        collapsed = [label for label, _ in itertools.groupby(path) if label != 0]
        if collapsed == tokens:
            total += np.prod(probabilities[np.arange(len(path)), path])
    return -np.log(total) if total else np.inf


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [2, 2], [1, 2, 1], [1, 1, 2], [2, 2, 2], [1, 2, 2, 1]])
@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_equals_the_sum_over_all_alignments(tokens, num_frames):
    logits = np.random.default_rng(len(tokens)).normal(0, 2, (num_frames, 3))
    expected = enumerated_loss(logits, tokens)
    padded_logits, padded_tokens = np.full((1, 8, 3), 50.0, np.float32), np.full((1, 6), 1, np.int32)
    padded_logits[0, :num_frames], padded_tokens[0, : len(tokens)] = logits, tokens
    loss, feasible, _ = compiled()(padded_logits, np.array([num_frames]), padded_tokens, np.array([len(tokens)]))
    assert bool(feasible[0]) == np.isfinite(expected)
    np.testing.assert_allclose(loss[0], expected if np.isfinite(expected) else 0.0, rtol=1e-5, atol=1e-5)


def test_equals_torch():
    sys.path.insert(0, str(GOLDEN))
    from make_ctc import cases

    case, golden = cases(), np.load(GOLDEN / "ctc.npz")
    losses, feasible, gradient = compiled()(*case.values())
    assert feasible.tolist() == [True, True, False, True, True, True, True]
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden["gradient"], atol=2e-5)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    token_lengths=st.lists(st.integers(0, 8), min_size=4, max_size=4),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_is_never_negative_and_never_nan(lengths, token_lengths, scale, seed):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((4, 12, VOCAB))).astype(np.float32)
    tokens = rng.integers(1, 3, (4, 8)).astype(np.int32)  # two tokens only, so that repeats are common
    losses, feasible, gradient = compiled()(logits, np.array(lengths), tokens, np.array(token_lengths))
    assert np.isfinite(losses).all()
    assert (np.asarray(losses) >= 0).all()
    assert np.isfinite(gradient).all()
    for row in range(4):
        spelled = tokens[row, : token_lengths[row]]
        needed = len(spelled) + (spelled[1:] == spelled[:-1]).sum()
        assert bool(feasible[row]) == (lengths[row] >= max(1, needed))
        learnt = np.abs(gradient[row]).max(axis=-1) > 0
        assert not learnt[lengths[row] :].any()
        assert feasible[row] or (losses[row] == 0 and not learnt.any())


@settings(max_examples=20)
@given(seed=st.integers(0, 99), order=st.permutations(range(5)))
def test_does_not_depend_on_padding_or_row_order(seed, order):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((5, 20, VOCAB)).astype(np.float32)
    tokens, order = rng.integers(1, VOCAB, (5, 9)).astype(np.int32), np.array(order)
    lengths, token_lengths = rng.integers(0, 21, 5), rng.integers(0, 10, 5)
    alone, _, _ = compiled()(logits, lengths, tokens, token_lengths)
    logits = np.pad(logits, ((0, 0), (0, 13), (0, 0)), constant_values=7.0)
    tokens = np.pad(tokens, ((0, 0), (0, 4)), constant_values=3)
    padded, _, _ = compiled()(logits[order], lengths[order], tokens[order], token_lengths[order])
    np.testing.assert_allclose(padded, alone[order], rtol=1e-5)


def test_consistency_is_symmetric_kl_with_fixed_targets():
    one, two = jax.random.normal(jax.random.key(0), (2, 2, 5, VOCAB))
    lengths = jnp.array([5, 3])
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (one, two))
    expected = 0.5 * ((p - q) * (np.log(p) - np.log(q))).sum(-1)
    segments = Segments.of(lengths)
    losses = consistency_loss(one, two, segments)[:, 0]
    np.testing.assert_allclose(losses, [expected[0].sum(), expected[1, :3].sum()], rtol=1e-4)
    gradient = jax.grad(lambda x: consistency_loss(x, two, segments).sum())(one)
    np.testing.assert_allclose(gradient[0], 0.5 * (p - q)[0], atol=1e-5)  # only the term whose target is `two` is felt
    assert not gradient[1, 3:].any()


MODEL = ConformerConfig(input_dim=16, dim=8, num_layers=2, num_heads=2, kernel_size=3, left_max=4, right_max=2)
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3))
FAST = FastConformerConfig(input_dim=8, dim=8, num_layers=2, num_heads=2, kernel_size=3, channels=4)
FAST_FRONTEND = FRONTEND.replace(mel=LogMel(variant="nemo", num_mel_bins=8, stack=1))


def make_batch(rows: int, num_samples: int = 16_000, num_tokens: int = 6) -> dict[str, np.ndarray]:
    """Noise of several lengths, one row too short for its tokens, one without tokens, one filler row."""
    rng = np.random.default_rng(0)
    shares = np.resize([1.0, 0.6, 0.8, 0.1, 0.5, 0.0], rows)
    return {
        "audio": rng.integers(-9000, 9000, (rows, num_samples)).astype(np.int16),
        "audio_length": (shares * num_samples).astype(np.int32),
        "tokens": rng.integers(1, VOCAB, (rows, num_tokens)).astype(np.int32),
        "token_length": np.resize([6, 3, 0, 6, 2, 0], rows).astype(np.int32),
        "example_id": np.arange(rows, dtype=np.int32) + 7,
        "weight": (shares > 0).astype(np.float32),
    }


@functools.cache
def objective(model=MODEL, frontend=FRONTEND, **settings):
    """The objective, its parameters and its jitted loss."""
    built = CTC(**settings).build(model, frontend, TOKENIZER)
    params = functional.init(built.make, jax.random.key(0))
    return built, params, jax.jit(built.loss)


FULL = {"intermediate": (1,), "consistency": 0.2}


BOTH = pytest.mark.parametrize("encoder", [(MODEL, FRONTEND), (FAST, FAST_FRONTEND)], ids=["conformer", "fast"])


@BOTH
def test_loss_is_the_mean_over_tokens_of_the_sum_over_rows(encoder):
    """A second of FastConformer's frames is thirteen: what is feasible is counted in those."""
    batch = make_batch(6)
    built, params, run = objective(*encoder)
    loss, metrics = run(params, batch, None)
    logits, lengths = jax.jit(built.logits)(params, batch)
    losses, feasible = ctc_loss(logits, lengths, jnp.asarray(batch["tokens"]), jnp.asarray(batch["token_length"]))
    assert feasible.tolist() == [True, True, True, False, True, False]
    np.testing.assert_allclose(metrics["loss"], (losses.sum(), 6 + 3 + 1 + 2), rtol=1e-5)  # no token counts as one
    np.testing.assert_allclose(loss, losses.sum() / 12, rtol=1e-5)
    np.testing.assert_allclose(metrics["infeasible"], (1, 5))
    blank = sum((np.asarray(logits)[row, : lengths[row]].argmax(-1) == 0).sum() for row in range(5))
    np.testing.assert_allclose(metrics["blank"], (blank, lengths[:5].sum()))


def test_parts_add_up_to_the_loss():
    _, params, run = objective(**FULL)
    _, metrics = run(params, make_batch(6), jax.random.key(3))
    part = {name: float(total) for name, (total, _) in metrics.items()}
    assert part["consistency"] > 0
    expected = 0.7 * part["ctc"] + 0.3 * part["intermediate"] + 0.2 * part["consistency"]
    np.testing.assert_allclose(part["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "model", "frontend", "tokenizer", "message"),
    [
        (CTC(), MODEL, FRONTEND, None, "tokenizer"),
        (CTC(intermediate=(2,)), MODEL, FRONTEND, TOKENIZER, r"2 layers"),
        (CTC(), MODEL.replace(input_dim=80), FRONTEND, TOKENIZER, "--model.input_dim 16"),
        (CTC(), FAST.replace(input_dim=16), FRONTEND, TOKENIZER, "--frontend.mel.stack 1"),
        (CTC(), MODEL, FRONTEND.replace(augment=Augment(crop_seconds=1.0)), TOKENIZER, "crop_seconds"),
        (CTC(consistency=0.2), MODEL, FRONTEND.replace(augment=Augment()), TOKENIZER, "SpecAugment"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, model, frontend, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        config.build(model, frontend, tokenizer)
