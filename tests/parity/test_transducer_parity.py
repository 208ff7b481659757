"""The TDT loss against transformers' own, written for torch, and that of RNN-T against torchaudio's where it loads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.objectives.asr.transducer_loss import transducer_loss

torch = pytest.importorskip("torch")
loss_tdt = pytest.importorskip("transformers.loss.loss_tdt")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("durations", [(0, 1, 2, 3, 4), (0, 1, 2, 4, 8), (1, 0)])
def test_the_tdt_loss_and_its_gradient_equal_those_of_transformers(durations):
    rng, vocab = np.random.default_rng(0), 12
    logits = rng.normal(0, 2, (4, 40, 11, vocab + len(durations))).astype(np.float32)
    lengths, token_lengths = np.array([40, 31, 25, 40]), np.array([10, 3, 10, 0])
    tokens = rng.integers(1, vocab, (4, 10))
    with torch.enable_grad():
        theirs = torch.tensor(logits, requires_grad=True)
        expected = loss_tdt.tdt_loss(
            theirs[..., :vocab], theirs[..., vocab:], *map(torch.tensor, (tokens, lengths, token_lengths)),
            blank_token_id=0, durations=list(durations), sigma=0.05, reduction="none",
        )  # fmt: skip
        expected.sum().backward()

    def loss(logits):
        losses = transducer_loss(logits, lengths, tokens, token_lengths, durations=durations, sigma=0.05)[0]
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(logits))
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-4)


def test_the_rnnt_loss_and_its_gradient_equal_those_of_torchaudio():
    try:
        from torchaudio.functional import rnnt_loss
    except (ImportError, OSError) as error:  # built for another torch
        pytest.skip(str(error))
    rng, vocab = np.random.default_rng(0), 12
    logits = rng.normal(0, 2, (4, 40, 11, vocab)).astype(np.float32)
    lengths, token_lengths = np.array([40, 31, 25, 40]), np.array([10, 3, 10, 1])
    tokens = rng.integers(1, vocab, (4, 10))
    with torch.enable_grad():
        theirs = torch.tensor(logits, requires_grad=True)
        whole = [torch.tensor(x, dtype=torch.int32) for x in (tokens, lengths, token_lengths)]
        expected = rnnt_loss(theirs, *whole, blank=0, reduction="none")
        expected.sum().backward()

    def loss(logits):
        losses = transducer_loss(logits, lengths, tokens, token_lengths)[0]
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(logits))
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-4)
