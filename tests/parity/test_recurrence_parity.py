"""The layers of the recurrent encoder against PyTorch's LSTM and GRU, on rows of several lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.models.rnn import RNN, RNNConfig
from jax_speechlm.nn import functional

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

LENGTHS = [9, 1, 6]


def theirs_from_ours(layers, config):
    """Returns PyTorch's stack with the same weights; it has a second bias, which only a GRU's new gate needs."""
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[config.cell]
    width = config.dim // config.num_directions
    module = kind(config.dim, width, config.num_layers, batch_first=True, bidirectional=config.bidirectional)
    state = {}
    for layer in range(config.num_layers):
        for name, suffix in (("forward", ""), ("backward", "_reverse"))[: config.num_directions]:
            ours = jax.tree.map(lambda leaf, layer=layer: np.asarray(leaf[layer]), layers[name])
            second = np.zeros_like(ours["input"]["bias"])
            if config.cell == "gru":
                second[2 * width :] = ours["recurrent_bias"]
            arrays = {
                "weight_ih": ours["input"]["kernel"].T,
                "weight_hh": ours["recurrent"].T,
                "bias_ih": ours["input"]["bias"],
                "bias_hh": second,
            }
            state |= {f"{key}_l{layer}{suffix}": torch.tensor(array) for key, array in arrays.items()}
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_layers_equal_those_of_pytorch(cell, bidirectional):
    config = RNNConfig(input_dim=5, cell=cell, bidirectional=bidirectional, dim=8, num_layers=3)

    def make(rngs):
        return RNN(config, rngs=rngs)

    rng = np.random.default_rng(0)
    params = jax.device_get(functional.init(make, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32), params)
    module = functional.bind(functional.declare(make).graphdef, params)
    x = rng.standard_normal((len(LENGTHS), max(LENGTHS), config.dim)).astype(np.float32)
    ours, _ = module.encode(jnp.asarray(x), jnp.array(LENGTHS))

    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), LENGTHS, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        theirs, _ = theirs_from_ours(params["layers"], config)(packed)
    theirs, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs, batch_first=True)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
