"""Causal language modelling: predicts each token from the preceding tokens of its document."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig, forward_flops
from jax_speechlm.nn.vocabulary_loss import TokenScores, vocabulary_loss
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, row_keys


class TextModel(nnx.Module):
    """A transformer in the parameter group "transformer", from which other runs load it."""

    def __init__(self, config: TransformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.transformer = Transformer(config, vocab_size, rngs=rngs)


@runtime_checkable
class NamesTokens(Protocol):
    """A module that computes logits over a vocabulary as `head(hidden) @ head_kernel.T + head_bias`.

    Implemented by the transformer and by the text side of a joint model.
    """

    config: Config
    head_kernel: Float[Array, "vocab dim"]
    head_bias: Float[Array, " vocab"] | None

    def head(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Transforms hidden states before the output projection."""


class CausalLM(ObjectiveConfig):
    """Settings of causal language modelling.

    Attributes:
      z_weight: weight of the z-loss, which keeps the softmax's normaliser near 1 and thereby stabilises large models in
        bfloat16; 1e-4 in Chowdhery et al. 2022.
    """

    kind: Literal["causal_lm"] = "causal_lm"
    z_weight: Annotated[float, Field(ge=0)] = 1e-4

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over all tokens but the first of every document. Metrics: `loss`,
        `cross_entropy` (nats, without the z-loss; absent if `z_weight` is 0), `accuracy`.
        """
        require_transformer(model, causal=True, objective=self.kind)

        def score(transformer: Transformer, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return token_metrics(transformer, *next_token_states(transformer, batch, key), self.z_weight)[0]

        return text_objective(model, Vocabulary.of(tokenizer), score)


def text_objective(
    model: TransformerConfig,
    vocabulary: Vocabulary,
    score: Callable[[Transformer, Batch, PRNGKeyArray | None], Metrics],
    **parts: Any,
) -> Objective:
    """Builds the objective of a `TextModel` from the metrics of its transformer; `parts` as for `Objective.of`."""

    def make(rngs):
        return TextModel(model, vocabulary.size, rngs=rngs)

    def flops(num_tokens: int, batch_size: int) -> float:
        return forward_flops(model, vocabulary.size, num_tokens, batch_size)

    return Objective.of(
        make,
        lambda module, batch, key: score(module.transformer, batch, key),
        **{"forward_flops": flops, **parts},
    )


def require_transformer(model: Config, *, causal: bool, objective: str) -> None:
    """Raises ValueError unless the model is a transformer with the required attention direction."""
    if not isinstance(model, TransformerConfig):
        raise ValueError(f"{objective} trains a transformer, not a {model.kind}: set model to a TransformerConfig")
    if model.causal != causal:
        sees = "must not see the token that it predicts" if causal else "fills gaps from both sides"
        raise ValueError(f"{objective} {sees}: set --model.causal {causal}")


def next_tokens(
    tokens_BxT: Int[Array, "batch time"], segment_BxT: Int[Array, "batch time"]
) -> tuple[Int[Array, "batch time"], Float[Array, "batch time"]]:
    """Shifts tokens to training targets.

    Returns:
      The next token at each position, and weights: 1 where it is in the same segment, else 0.
    """

    def shift(x):
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    same = (shift(segment_BxT) == segment_BxT) & (segment_BxT > 0)
    return shift(tokens_BxT), same.astype(jnp.float32)


def next_token_states(
    transformer: Transformer, batch: Batch, key: PRNGKeyArray | None
) -> tuple[Float[Array, "batch time dim"], Int[Array, "batch time"], Float[Array, "batch time"]]:
    """Returns hidden states of packed documents, the next token at each position, and its weight."""
    hidden_BxTxD = transformer(batch["tokens"], batch["segment"], batch["position"], row_keys(key, batch))
    return hidden_BxTxD, *weighted_targets(batch)


def weighted_targets(batch: Batch) -> tuple[Int[Array, "batch time"], Float[Array, "batch time"]]:
    """Returns `next_tokens` of a batch, with weight 0 in filler rows."""
    target_BxT, weight_BxT = next_tokens(batch["tokens"], batch["segment"])
    return target_BxT, weight_BxT * batch["weight"][:, None]


def token_metrics(
    model: NamesTokens,
    hidden_BxTxD: Float[Array, "batch time dim"],
    target_BxT: Int[Array, "batch time"],
    weight_BxT: Float[Array, "batch time"],
    z_weight: float = 0.0,
) -> tuple[Metrics, TokenScores]:
    """Scores the targets as predicted from hidden states.

    Returns:
      Metrics `loss`, `accuracy` and, with a z-loss, `cross_entropy` without it; and the scores of each token.
    """
    total, scores = token_losses(model, hidden_BxTxD, target_BxT, weight_BxT, z_weight)
    count = jnp.sum(weight_BxT)
    metrics = {"loss": (total, count), "accuracy": (jnp.sum(weight_BxT * scores.correct), count)}
    if z_weight:
        metrics["cross_entropy"] = jnp.sum(weight_BxT * scores.nll), count
    return metrics, scores


def token_losses(
    model: NamesTokens,
    hidden_BxTxD: Float[Array, "batch time dim"],
    target_BxT: Int[Array, "batch time"],
    weight_BxT: Float[Array, "batch time"],
    z_weight: float = 0.0,
) -> tuple[Float[Array, ""], TokenScores]:
    """Computes `vocabulary_loss` with a model's output layer."""
    hidden_BxTxD = model.head(hidden_BxTxD).astype(model.config.dtype)
    kernel, bias = model.head_kernel, model.head_bias
    return vocabulary_loss(hidden_BxTxD, kernel, target_BxT, weight_BxT, bias_V=bias, z_weight=z_weight)
