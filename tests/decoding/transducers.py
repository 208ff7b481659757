"""Small transducers with random outputs, for the tests of searches."""

import functools

import jax
import numpy as np

from jax_speechlm.models.transducer import (
    LSTMPredictorConfig,
    StatelessPredictorConfig,
    TransducerConfig,
    TransducerModel,
)
from jax_speechlm.nn import functional
from tests.training import tiny

VOCAB, DIM, FRAMES = 3, 8, 17
CASES = {
    "rnnt": (LSTMPredictorConfig(num_layers=2), ()),
    "tdt": (LSTMPredictorConfig(), (0, 1, 2, 4)),
    "stateless": (StatelessPredictorConfig(context=2), ()),
}
"""Predictor and durations."""


@functools.cache
def model(name: str) -> TransducerModel:
    """A model whose outputs are far from even, so that it emits tokens, in some frames many."""
    predictor, durations = CASES[name]
    config = TransducerConfig(dim=DIM, predictor=predictor)

    def make(rngs):
        return TransducerModel(tiny.MODEL, config, VOCAB, len(durations), rngs=rngs)

    params = functional.init(make, jax.random.key(1))
    params["joint"]["kernel"] *= 4
    params["joint"]["bias"] = params["joint"]["bias"].at[0].add(1.0)
    return functional.bind(functional.declare(make).graphdef, params)


def frames(batch: int) -> np.ndarray:
    """Projected encoder outputs."""
    return np.random.default_rng(0).normal(0, 2, (batch, FRAMES, DIM)).astype(np.float32)
