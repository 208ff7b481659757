"""Intent and slots of spoken commands, straight from audio.

A command is an intent and a value for some of its slots, each from a closed set. The values of a slot share words ("a
bit of milk", "a bit of soy milk"), so that each word of a slot has a score of its own, and that of a value is the sum
over its words: rare values are learnt from frequent ones. A score is a mean over the frames, weighted by an attention
that is learnt per word (attention pooling, Kong et al. 2018, "Audio set classification with attention model: a
probabilistic perspective").
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import AfterValidator, Field

from data_pipelines.core.commands import read_slots
from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import encoders
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import Metrics, Objective, check_features, on_params, speech_flops
from jax_speechlm.objectives.heads.base import HeadConfig, distinct, encode, layer_weights

_LEAST_ATTENTION = 1e-6  # sum over the frames of an utterance

Values = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct)]

LabelLogProbs = Callable[
    [functional.Params, Batch, PRNGKeyArray | None], tuple[Float[Array, "batch utterances outputs"], ...]
]


class Slot(Config):
    """A slot of the commands, with its values in the order of their ids from 1 on; 0 is a command without the slot."""

    name: str
    values: Values


class Intent(HeadConfig):
    """Settings of the classification of commands.

    Attributes:
      intents: names of the intents; empty takes those of the training data.
      slots: the slots; empty takes those of the training data, with all their values there.
    """

    kind: Literal["intent"] = "intent"
    intents: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    slots: tuple[Slot, ...] = ()

    @property
    def num_labels(self) -> int:
        """One for the intent, and one for each slot."""
        return 1 + len(self.slots)

    def of_data(self, column: Callable[[str], list[str]]) -> "Intent":
        """Returns the objective with the intents and slots of the training data, where it names none.

        Raises:
          DataError: the data have no intents.
        """
        own = self
        if not own.intents:
            own = own.replace(intents=tuple(sorted(set(column("intent")) - {""})))
            if not own.intents:
                raise DataError('no row has an intent: list the recordings with "intent" and "slots", and prepare them')
        if not own.slots:
            values: dict[str, set[str]] = {}
            for slots in map(read_slots, column("slots")):
                for name, value in slots.items():
                    values.setdefault(name, set()).add(value)
            own = own.replace(
                slots=tuple(Slot(name=name, values=tuple(sorted(values[name]))) for name in sorted(values))
            )
        return own

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is a mean over labels (nats), without labels of -1. Metrics: `accuracy` (share
        of the labels that are right) and `exact` (share of the utterances whose labels are all right).
        """
        check_features(model, frontend.mel)

        def score(module: CommandModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            batch = by_utterance(batch)
            log_probs = self._log_probs(module, batch, frontend, key)
            label_BxNxL = batch["labels"]
            chosen, right = [], []
            for number, log_probs_BxNxC in enumerate(log_probs):
                label_BxN = label_BxNxL[..., number]
                index_BxNx1 = jnp.maximum(label_BxN, 0)[..., None]
                chosen.append(jnp.take_along_axis(log_probs_BxNxC, index_BxNx1, axis=-1)[..., 0])
                right.append(jnp.argmax(log_probs_BxNxC, axis=-1) == label_BxN)
            right_BxNxL, weight_BxNx1 = jnp.stack(right, axis=-1), batch["weight"][..., None]
            known_BxNxL = weight_BxNx1 * (label_BxNxL >= 0)
            labels, utterances = jnp.sum(known_BxNxL), jnp.sum(weight_BxNx1)
            return {
                "loss": (-jnp.sum(known_BxNxL * jnp.stack(chosen, axis=-1)), labels),
                "accuracy": (jnp.sum(known_BxNxL * right_BxNxL), labels),
                "exact": (jnp.sum(weight_BxNx1[..., 0] * jnp.all(right_BxNxL, axis=-1)), utterances),
            }

        flops = speech_flops(model, frontend, lambda num_vectors: 0.0)
        return Objective.of(self._maker(model), score, forward_flops=flops)

    def classifier(self, model: EncoderConfig, frontend: FrontEnd) -> LabelLogProbs:
        """Returns `(params, batch, key) -> log-probabilities of the ids of each label [batch, utterances, ids]`.

        Raises as `build`.
        """
        check_features(model, frontend.mel)

        def classify(module: CommandModel, batch: Batch, key: PRNGKeyArray | None):
            return self._log_probs(module, by_utterance(batch), frontend, key)

        return on_params(self._maker(model), classify)

    def _log_probs(self, module: "CommandModel", batch: Batch, frontend: FrontEnd, key: PRNGKeyArray | None):
        hidden_BxTxD, segments = encode(module.encoder, batch, frontend, key, module.mix)
        pieces_BxNxP = module.piece_scores(hidden_BxTxD, segments)
        maps, first, results = self._value_maps(), 0, []
        for pieces_CxP in maps:
            own_BxNxP = pieces_BxNxP[..., first : first + pieces_CxP.shape[1]]
            first += pieces_CxP.shape[1]
            results.append(jax.nn.log_softmax(jnp.einsum("bnp,cp->bnc", own_BxNxP, pieces_CxP)))
        return tuple(results)

    def _value_maps(self) -> list[np.ndarray]:
        """Returns for each label the pieces of each id, 0 or 1 [ids, pieces]; the sum of pieces scores the id.

        The pieces of the intent are the intents. Those of a slot are its absence and the words of its values, counted
        apart if a value repeats one.
        """
        maps = [np.eye(max(1, len(self.intents)), dtype=np.float32)]  # without names a plan before the data are there
        for slot in self.slots:
            named = [("",), *(_numbered(value.split()) for value in slot.values)]
            pieces = {piece: place for place, piece in enumerate(dict.fromkeys(p for value in named for p in value))}
            pieces_CxP = np.zeros((len(named), len(pieces)), np.float32)
            for row, value in enumerate(named):
                pieces_CxP[row, [pieces[piece] for piece in value]] = 1
            maps.append(pieces_CxP)
        return maps

    def _maker(self, model: EncoderConfig) -> functional.MakeModule:
        pieces = sum(pieces_CxP.shape[1] for pieces_CxP in self._value_maps())
        return lambda rngs: CommandModel(model, pieces, self.weighted_layers, rngs=rngs)


class CommandModel(nnx.Module):
    """A speech encoder with a score for each piece of a command, pooled over time by an attention for each."""

    def __init__(self, config: EncoderConfig, num_pieces: int, is_weighted: bool = False, *, rngs: nnx.Rngs):
        self.encoder = encoders.make_encoder(config, rngs=rngs)
        self.mix = layer_weights(config, is_weighted, rngs)
        self.score = Linear((config.dim,), (num_pieces,), ("embed", None), rngs=rngs)
        self.attention = Linear((config.dim,), (num_pieces,), ("embed", None), rngs=rngs)

    def piece_scores(
        self, hidden_BxTxD: Float[Array, "batch time dim"], lengths: Lengths
    ) -> Float[Array, "batch utterances pieces"]:
        """Returns the score of each piece in each utterance; 0 without frames."""
        segments = Segments.of(lengths)
        score_BxTxP = self.score(hidden_BxTxD).astype(jnp.float32)
        # A sigmoid, unlike a softmax, needs no maximum over each utterance of a packed row.
        weight_BxTxP = jax.nn.sigmoid(self.attention(hidden_BxTxD).astype(jnp.float32))
        total_BxNxP = jnp.maximum(segments.sum(weight_BxTxP), _LEAST_ATTENTION)
        return segments.sum(weight_BxTxP * score_BxTxP) / total_BxNxP


def _numbered(words: list[str]) -> tuple[str, ...]:
    """Returns words, of which repeated ones are told apart by their number."""
    return tuple(word if words.index(word) == at else f"{word} {at}" for at, word in enumerate(words))
