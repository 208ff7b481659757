"""The transducer objective against the plain loss of its joint network at every node, reached a step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.models.transducer import LSTMPredictorConfig, StatelessPredictorConfig, TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc_loss import ctc_loss
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.asr.transducer_loss import transducer_loss
from jax_speechlm.objectives.base import on_params
from jax_speechlm.objectives.heads.base import encode
from tests.contracts.objectives import Toy
from tests.training import tiny

TDT = Transducer(
    durations=(0, 1, 3), network=TransducerConfig(dim=8, predictor=LSTMPredictorConfig(num_layers=2), dropout=0.2)
)
RNNT = Transducer(network=TransducerConfig(dim=8, predictor=StatelessPredictorConfig(context=3)), ctc_weight=0.0)


@pytest.mark.parametrize("config", [TDT, RNNT], ids=["tdt with lstm", "rnnt without state"])
def test_the_loss_is_that_of_the_logits_of_every_node(config):
    toy = Toy(config, tiny.MODEL, "speech")
    metrics = toy.evaluate(toy.batch)

    def plain(module, batch):
        hidden, length = encode(module.encoder, batch, toy.frontend, None)
        encoder, state, columns = module.project(hidden), module.init_state(len(hidden)), []
        for tokens in [*batch["tokens"].T, None]:
            log_probs = jax.vmap(module.log_probs, (1, None), 1)(encoder, state.output)
            columns.append(jnp.concatenate(log_probs, axis=-1))
            state = state if tokens is None else module.step(state, tokens)
        targets = batch["tokens"], batch["token_length"]
        options = {"durations": config.durations, "sigma": config.sigma if config.durations else 0.0}
        losses, feasible = transducer_loss(jnp.stack(columns, axis=2), length, *targets, **options)
        if config.ctc_weight:
            ctc, _ = ctc_loss(module.ctc_logits(hidden), length, *targets)
            losses = (1 - config.ctc_weight) * losses + config.ctc_weight * ctc * feasible
        return losses, feasible

    losses, feasible = jax.jit(on_params(toy.objective.make, plain))(toy.params, toy.batch)
    weight = toy.batch["weight"] * feasible
    np.testing.assert_allclose(metrics["loss"][0], (weight * losses).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][1], (weight * np.maximum(toy.batch["token_length"], 1)).sum())
    assert metrics["infeasible"][0] == (toy.batch["weight"] * ~feasible).sum()


def test_a_head_is_there_if_its_loss_is():
    names = [set(functional.declare(Toy(config, tiny.MODEL, "speech").objective.make).shapes) for config in (TDT, RNNT)]
    assert names[0] - names[1] == {"head"}
    assert Toy(RNNT, tiny.MODEL, "speech").objective.logits is None


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="1 among them"):
        Transducer(durations=(0, 2))
    with pytest.raises(ValueError, match="a transducer needs a tokenizer"):
        RNNT.build(tiny.MODEL, tiny.experiment().frontend, None)
