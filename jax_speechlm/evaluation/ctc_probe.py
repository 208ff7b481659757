"""CTC probes: linear maps from each layer of a frozen encoder to characters.

One map per layer is trained with CTC on the frozen, standardised hidden states; all are trained at once, so the encoder
runs once per batch. SUPERB (Yang et al. 2021) probes phones in the same way, with a weighted sum of the layers.
"""

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.decoding.ctc.greedy import best_path, collapse
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.asr.ctc_loss import ctc_loss

Layers = Callable[[Params, Batch], tuple[Float[Array, "layers batch time dim"], Int[Array, " batch"]]]
"""Computes, from an encoder's parameters and a batch, the hidden states of all layers and the lengths in frames."""

_PEAK, _WARMUP_SHARE = 1e-2, 0.1  # Adam's peak learning rate, for standardised features
_MEASURED = 16  # batches used for the standardisation


def fit(layers: Layers, frozen: Params, batches: Iterator[Batch], num_steps: int, num_ids: int) -> Params:
    """Trains the probes, one step per batch.

    Args:
      frozen: the encoder's parameters.
      batches: speech with tokens, `num_steps` batches; the first 16 also determine the standardisation.
      num_ids: vocabulary size of the tokenizer.

    Returns:
      `mean` and `scale` [layers, dim], `kernel` [layers, dim, ids], `bias` [layers, ids].
    """
    measured = list(itertools.islice(batches, _MEASURED))
    standard = _standardisation(layers, frozen, tuple(measured))
    num_layers, dim = standard["mean"].shape
    learnt = {"kernel": jnp.zeros((num_layers, dim, num_ids)), "bias": jnp.zeros((num_layers, num_ids))}
    schedule = optax.warmup_cosine_decay_schedule(0, _PEAK, round(_WARMUP_SHARE * num_steps), num_steps)
    adam = optax.adam(schedule)

    def loss(learnt: Params, hidden_LxBxTxD: Array, length_B: Array, batch: Batch) -> Array:
        logits_LxBxTxV = ctc_logits(standard | learnt, hidden_LxBxTxD)
        tokens, token_length_B = batch["tokens"], batch["token_length"]
        nats_LxB, feasible_LxB = jax.vmap(lambda x: ctc_loss(x, length_B, tokens, token_length_B))(logits_LxBxTxV)
        weight_LxB = feasible_LxB * batch["weight"]  # layers share no parameters: each is trained by its own loss
        return jnp.sum(weight_LxB * nats_LxB) / jnp.maximum(jnp.sum(weight_LxB[0] * token_length_B), 1)

    @jax.jit
    def step(learnt: Params, state: optax.OptState, frozen: Params, batch: Batch) -> tuple[Params, optax.OptState]:
        updates, state = adam.update(jax.grad(loss)(learnt, *layers(frozen, batch), batch), state)
        return optax.apply_updates(learnt, updates), state

    state = adam.init(learnt)
    for batch in itertools.chain(measured, batches):
        learnt, state = step(learnt, state, frozen, batch)
    return standard | learnt


def ctc_logits(
    probe: Params, hidden_LxBxTxD: Float[Array, "layers batch time dim"]
) -> Float[Array, "layers batch time ids"]:
    """Computes the logits of every probe."""
    x = (hidden_LxBxTxD - probe["mean"][:, None, None]) * probe["scale"][:, None, None]
    return jnp.einsum("lbtd,ldv->lbtv", x, probe["kernel"]) + probe["bias"][:, None, None]


def texts(
    layers: Layers, frozen: Params, probe: Params, batches: Iterator[Batch], num_rows: int, tokenizer: Tokenizer
) -> list[list[str]]:
    """Decodes utterances greedily with every probe: lists per layer, by `example_id`; "" for rows in no batch."""

    @jax.jit
    def paths(frozen: Params, batch: Batch) -> Int[Array, "layers batch time"]:
        hidden_LxBxTxD, length_B = layers(frozen, batch)
        return jax.vmap(lambda logits: best_path(logits, length_B))(ctc_logits(probe, hidden_LxBxTxD))

    of_layers = [[""] * num_rows for _ in range(len(probe["bias"]))]
    for batch in batches:
        for of_layer, path_BxT in zip(of_layers, np.asarray(paths(frozen, batch)), strict=True):
            for row, ids in zip(batch["example_id"].tolist(), collapse(path_BxT), strict=True):
                if row >= 0:
                    of_layer[row] = tokenizer.decode(ids)
    return of_layers


def _standardisation(layers: Layers, frozen: Params, batches: tuple) -> Params:
    """Computes the mean and inverse standard deviation of each layer's dimensions over the frames of some batches."""

    @jax.jit
    def sums(frozen: Params, batch: Batch, mean: Array) -> tuple[Array, Array, Array]:
        hidden_LxBxTxD, length_B = layers(frozen, batch)
        inside_BxT = frame_mask(length_B, hidden_LxBxTxD.shape[2]) * batch["weight"][:, None]
        x = (hidden_LxBxTxD - mean[:, None, None]) * inside_BxT[..., None]
        return inside_BxT.sum(), x.sum((1, 2)), jnp.square(x).sum((1, 2))

    mean = jnp.zeros((1, 1))
    for _ in range(2):  # the second pass is centred on the mean, which avoids cancellation
        of_batches = [jax.device_get(sums(frozen, batch, mean)) for batch in batches]
        count, total, square = map(sum, zip(*of_batches, strict=True))
        mean = mean + total / max(count, 1)
    return {"mean": mean, "scale": jnp.asarray(1 / np.sqrt(square / max(count, 1) + 1e-5))}
