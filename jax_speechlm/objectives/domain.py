"""Domain-adversarial training of any speech encoder: its output is not to tell domains apart, speakers or languages.

A head predicts the domain of each utterance from the mean of the encoder's output. The gradient of the head's loss is
reversed where it enters the encoder: the head learns to tell the domains apart, the encoder to prevent that (Ganin and
Lempitsky 2015, "Unsupervised domain adaptation by backpropagation").
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import AfterValidator, PositiveFloat, PositiveInt

from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import Metrics, Objective, mean, weighted
from jax_speechlm.objectives.heads.base import distinct, encode

GROUP = "domain_head"
"""The parameters of the head, which only training needs."""


class DomainAdversary(Config):
    """Settings of domain-adversarial training.

    Attributes:
      classes: the domains: values of `column`; empty for no such training.
      column: column of the index, "speaker" or "language".
      weight: factor of the reversed gradient at the end of its ramp, the lambda of Ganin and Lempitsky.
      ramp_steps: steps over which the factor rises from 0, as 2 / (1 + exp(-10 step / ramp_steps)) - 1.
      hidden_dim: width of the head's hidden layer.
    """

    classes: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    column: str = "speaker"
    weight: PositiveFloat = 0.1
    ramp_steps: PositiveInt = 1000
    hidden_dim: PositiveInt = 128


class DomainHead(nnx.Module):
    """Linear map -> ReLU -> linear map to the domains."""

    def __init__(self, dim: int, settings: DomainAdversary, *, rngs: nnx.Rngs):
        hidden = (settings.hidden_dim,)
        self.hidden = Linear((dim,), hidden, ("embed", "mlp"), gain=2**0.5, rngs=rngs)
        self.out = Linear(hidden, (len(settings.classes),), ("mlp", None), rngs=rngs)

    def __call__(self, x: Float[Array, "*utterances dim"]) -> Float[Array, "*utterances domains"]:
        return self.out(jax.nn.relu(self.hidden(x)))


@jax.custom_vjp
def reverse_gradient(x: Float[Array, "*shape"], factor: Float[Array, ""]) -> Float[Array, "*shape"]:
    """Returns x; its gradient is multiplied by -`factor`."""
    del factor
    return x


def _forward(x, factor):
    return x, factor


def _backward(factor, gradient):
    return -factor * gradient, jnp.zeros_like(factor)


reverse_gradient.defvjp(_forward, _backward)


def reversal(settings: DomainAdversary, step: Int[Array, "*steps"]) -> Float[Array, "*steps"]:
    """Returns the factor of the reversed gradient at a step."""
    progress = jnp.minimum(step / settings.ramp_steps, 1.0)
    return jnp.float32(settings.weight) * (2 / (1 + jnp.exp(-10 * progress)) - 1)


def against_domains(
    objective: Objective, settings: DomainAdversary, model: Config, frontend: FrontEnd | None
) -> Objective:
    """Returns an objective that is trained against a head for domains too; evaluation is as it was.

    The encoder makes a pass of its own for the head. The gradient of the encoder is that of the task's loss minus the
    factor times that of the head's loss, which the head itself descends. Metrics gain `domain` (nats) and
    `domain_accuracy`, over the utterances whose domain is among the classes.

    Raises:
      ValueError: the objective does not train a speech encoder.
    """
    if not settings.classes:
        return objective
    if not isinstance(model, EncoderConfig):
        raise ValueError(
            f"adversary.classes are for objectives of a speech encoder, not of a {model.kind}: leave them empty"
        )

    def make(rngs: nnx.Rngs) -> nnx.Module:
        module = objective.make(rngs)
        setattr(module, GROUP, DomainHead(model.dim, settings, rngs=rngs))
        return module

    encoder = functional.declare(lambda rngs: make_encoder(model, rngs=rngs)).graphdef
    head = functional.declare(lambda rngs: DomainHead(model.dim, settings, rngs=rngs)).graphdef

    def domain_metrics(params: functional.Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        rows = by_utterance(batch)
        hidden_BxTxD, segments = encode(functional.bind(encoder, params["encoder"]), rows, frontend, key)
        factor = reversal(settings, batch["step"])
        pooled_BxNxD = reverse_gradient(segments.mean(hidden_BxTxD), factor)
        logits_BxNxC = functional.bind(head, params[GROUP])(pooled_BxNxD)
        domain_BxN = rows["domain"]
        nll_BxN = optax.softmax_cross_entropy_with_integer_labels(logits_BxNxC, jnp.maximum(domain_BxN, 0))
        correct_BxN = jnp.argmax(logits_BxNxC, axis=-1) == domain_BxN
        return weighted(rows["weight"] * (domain_BxN >= 0), {"domain": nll_BxN, "domain_accuracy": correct_BxN})

    def loss(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
        own, metrics = objective.loss({name: part for name, part in params.items() if name != GROUP}, batch, key)
        if key is None:
            return own, metrics
        added = domain_metrics(params, batch, key)
        total, (_, targets) = own + mean(*added["domain"]), metrics["loss"]
        return total, metrics | added | {"loss": (total * targets, targets)}

    return dataclasses.replace(objective, make=make, loss=loss, training_only=(*objective.training_only, GROUP))
