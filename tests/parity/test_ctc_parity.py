"""The CTC loss and its gradient against torch, live and at random."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.objectives.asr.ctc_loss import ctc_loss

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("vocab_size", [2, 30, 500])
def test_ctc_equals_torch(seed, vocab_size):
    pytest.importorskip("torch")
    sys.path.insert(0, str(GOLDEN))
    from make_ctc import torch_ctc

    rng = np.random.default_rng(seed)
    case = {
        "logits": (rng.choice([0.1, 1, 5]) * rng.standard_normal((8, 150, vocab_size))).astype(np.float32),
        "lengths": rng.integers(1, 151, 8).astype(np.int32),
        "tokens": rng.integers(1, vocab_size, (8, 60)).astype(np.int32),
        "token_lengths": rng.integers(0, 61, 8).astype(np.int32),
    }
    losses, gradient = torch_ctc(case)
    ours, pullback = jax.vjp(
        lambda logits: ctc_loss(logits, *map(jnp.asarray, list(case.values())[1:]))[0], case["logits"]
    )
    np.testing.assert_allclose(ours, losses, rtol=1e-5, atol=1e-5)
    # Log-probabilities of hundreds of nats round at this size in float32; torch's own float32 gradient is further off.
    np.testing.assert_allclose(pullback(jnp.ones(8))[0], gradient, atol=1e-6 * max(100, losses.max()))
