"""HuBERT's loss and its gradient against torch's own cosine similarity and cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.nn import functional
from jax_speechlm.objectives.ssl.hubert import HuBERT, Units

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

CONFIG = HuBERT(num_units=11, code_dim=6, temperature=0.1)


def test_logits_and_their_gradient():

    def make(rngs):
        return Units(CONFIG, 8, rngs=rngs)

    params = functional.init(make, jax.random.key(0))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 20, 8)).astype(np.float32)
    code, mask = rng.integers(0, 11, (3, 20)), rng.random((3, 20)) < 0.5

    def ours(params, hidden):
        logits = functional.bind(functional.declare(make).graphdef, params)(hidden)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), code[..., None], axis=-1)[..., 0]
        return jnp.sum(nats * mask) / mask.sum()

    value, (to_params, to_hidden) = jax.value_and_grad(ours, argnums=(0, 1))(params, hidden)

    leaves = [params["projection"]["kernel"], params["projection"]["bias"], params["embedding"], hidden]
    kernel, bias, embedding, x = (torch.tensor(np.asarray(leaf), requires_grad=True) for leaf in leaves)
    frames = (x @ kernel + bias)[torch.tensor(mask)]
    logits = torch.cosine_similarity(frames[:, None], embedding[None], dim=-1) / CONFIG.temperature
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(code[mask]))
    loss.backward()
    np.testing.assert_allclose(value, loss.detach().numpy(), rtol=1e-5)
    theirs = [kernel, bias, embedding, x]
    mine = [to_params["projection"]["kernel"], to_params["projection"]["bias"], to_params["embedding"], to_hidden]
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other.grad.numpy(), atol=1e-5)
