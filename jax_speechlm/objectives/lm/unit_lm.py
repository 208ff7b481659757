"""Unit language modelling: a causal language model over text and discrete speech units in one vocabulary.

References: Hassid et al. 2023 (TWIST: initialisation from a text model); Nguyen et al. 2024 (Spirit-LM: text and units
in one stream, interleaved at words).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray
from pydantic import Field, PositiveInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig
from jax_speechlm.objectives.lm.causal_lm import next_token_states, require_transformer, text_objective, token_metrics

_FEWEST_NATS = 0.5  # minimum entropy of the unit distribution; k-means of speech has 3 and more


class UnitLM(ObjectiveConfig):
    """Settings of unit language modelling.

    Attributes:
      num_units: speech units in the vocabulary, the clusters of the k-means model in `data.units`.
      z_weight: weight of the z-loss, as in causal_lm.
    """

    kind: Literal["unit_lm"] = "unit_lm"
    num_units: PositiveInt
    z_weight: Annotated[float, Field(ge=0)] = 1e-4

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over all tokens but the first of every document, of text and of
        speech. Metrics:

        - `loss`, `cross_entropy` (nats, without the z-loss; absent if `z_weight` is 0), `accuracy`: over all of these
          tokens;
        - `unit_loss`, `unit_accuracy`: over units; nats per unit;
        - `text_loss`: over text, including boundaries after text; nats per token. The remaining tokens are modality
          switches and boundaries after speech;
        - `bits_per_second`: of the units, per second of their audio. Unlike `unit_loss` it is comparable between unit
          inventories: fewer or shorter units are easier to predict (arXiv 2601.06329);
        - `unit_entropy`: unigram entropy of the batch's units in nats, the loss of a model that knows unit frequencies
          only.
        """
        vocabulary = Vocabulary.of(tokenizer, num_units=self.num_units)
        require_transformer(model, causal=True, objective=self.kind)

        def score(transformer: Transformer, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            hidden_BxTxD, target_BxT, weight_BxT = next_token_states(transformer, batch, key)
            metrics, scores = token_metrics(transformer, hidden_BxTxD, target_BxT, weight_BxT, self.z_weight)
            unit_BxT, text_BxT = kinds_of(target_BxT, batch["tokens"], vocabulary)
            unit_BxT, text_BxT = weight_BxT * unit_BxT, weight_BxT * text_BxT
            units, nats = jnp.sum(unit_BxT), jnp.sum(unit_BxT * scores.nll)
            # Durations of the targets.
            seconds_BxT = jnp.pad(batch["samples"][:, 1:], ((0, 0), (0, 1))) / frontend.mel.sample_rate
            share_K = gauges.code_shares(target_BxT - vocabulary.first_unit, unit_BxT, self.num_units)
            return metrics | {
                "unit_loss": (nats, units),
                "unit_accuracy": (jnp.sum(unit_BxT * scores.correct), units),
                "text_loss": (jnp.sum(text_BxT * scores.nll), jnp.sum(text_BxT)),
                "bits_per_second": (nats / jnp.log(2.0), jnp.sum(unit_BxT * seconds_BxT)),
                "unit_entropy": (units * gauges.entropy(share_K), units),
            }

        return text_objective(model, vocabulary, score, health_check=health_check)


def kinds_of(
    target_BxT: Int[Array, "batch time"], before_BxT: Int[Array, "batch time"], vocabulary: Vocabulary
) -> tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]:
    """Classifies targets by modality.

    Returns:
      Masks of units and of text, which includes boundaries after text.
    """
    before_is_speech = vocabulary.is_unit(before_BxT) | (before_BxT == vocabulary.speech)
    ends_text = (target_BxT == vocabulary.boundary) & ~before_is_speech
    return vocabulary.is_unit(target_BxT), (target_BxT < vocabulary.boundary) | ends_text


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if the units have collapsed or are not learnt, else None."""
    entropy = metrics["unit_entropy"]
    if 0 < entropy < _FEWEST_NATS:
        return (
            f"the units have collapsed: they are distributed with {entropy:.2f} nats, as if there were no more than "
            f"{math.exp(entropy):.1f} of them. Fit the k-means anew: jax-speechlm units fit"
        )
    if after_warmup and entropy and metrics["unit_loss"] > entropy:
        return (
            f"the model predicts units worse ({metrics['unit_loss']:.2f} nats) than their frequencies do "
            f"({entropy:.2f}): it has learnt nothing of speech. Raise "
            "optimizer.schedule.peak or the share of speech, or train longer"
        )
    return None
