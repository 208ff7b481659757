"""Several language models of one vocabulary as one: the mean of their probabilities, token by token."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.lm.causal import LanguageModel, text_nats
from jax_speechlm.training.checkpoints import CheckpointError


class LanguageEnsemble:
    """What scoring and fusion ask of a `LanguageModel`, answered by their mixture: P(token) is the mean of P.

    A mixture is a language model itself: its probabilities sum to one, and a text's is the product of its tokens'. Any
    number and size of members; each is given as much history as it was trained on.

    Attributes:
      members: the models.
    """

    def __init__(self, members: Sequence[LanguageModel]):
        """Raises `CheckpointError` where the members do not have one tokenizer."""
        first = members[0]
        for other in members[1:]:
            if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
                raise CheckpointError(
                    f"{other.checkpoint}: has another tokenizer ({other.tokenizer.kind}, {other.tokenizer.vocab_size} "
                    f"ids) than {first.checkpoint} ({first.tokenizer.kind}, {first.tokenizer.vocab_size} ids): only "
                    "models of one vocabulary have a mean"
                )
        self.members = tuple(members)

    @classmethod
    def load(cls, paths: Sequence[str | os.PathLike]) -> "LanguageEnsemble":
        """Reads each run's newest checkpoint, or a `checkpoints/<step>` folder.

        Raises:
          CheckpointError: one cannot be read, is no causal language model, or has another tokenizer.
        """
        return cls([LanguageModel.load(path) for path in paths])

    @property
    def tokenizer(self) -> Tokenizer:
        return self.members[0].tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return self.members[0].vocabulary

    @property
    def context(self) -> int:
        """Tokens of the shortest history that a member was trained on."""
        return min(member.context for member in self.members)

    @property
    def checkpoint(self) -> str:
        """The members' folders, for messages."""
        return " + ".join(str(member.checkpoint) for member in self.members)

    def encode(self, text: str) -> list[int]:
        """As `LanguageModel.encode`."""
        return self.members[0].encode(text)

    def score(self, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Log-probability of each text with its end, in nats: float64, below 0."""
        return np.array([-document.sum(dtype=np.float64) for document in text_nats(self, texts)])

    def token_nll(
        self, documents: Sequence[Sequence[int]], *, stride: int | None = None
    ) -> list[Float[np.ndarray, " predictions"]]:
        """Minus the log-probability of each token behind the first, given those before it, for each document.

        Args: as `LanguageModel.token_nll`, of whose windows each member has its own.
        """
        each = [member.token_nll(documents, stride=stride) for member in self.members]
        return [-mean_probability([-nats for nats in document]) for document in zip(*each, strict=True)]

    def session(self, slots: int, length: int, width: int) -> "EnsembleSession":
        """Room to score prefixes token by token; see `language_model.Session`."""
        return EnsembleSession([member.session(slots, length, width) for member in self.members])


class EnsembleSession:
    """The same prefixes in a session of each member."""

    def __init__(self, sessions: Sequence[Any]):
        self._sessions = sessions

    def start(self, slot: int) -> Float[np.ndarray, " vocab"]:
        """As `language_model.Session.start`."""
        return mean_probability([session.start(slot) for session in self._sessions])

    def extend(
        self, parents: Sequence[int], tokens: Sequence[int], slots: Sequence[int]
    ) -> Float[np.ndarray, "prefixes vocab"]:
        """As `language_model.Session.extend`."""
        return mean_probability([session.extend(parents, tokens, slots) for session in self._sessions])


def mean_probability(log_probs: Sequence[Float[np.ndarray, "*each"]]) -> Float[np.ndarray, "*each"]:
    """log of the mean of exp, by elements, in the arrays' type; -inf where all are."""
    return np.logaddexp.reduce(np.stack(log_probs), axis=0) - np.log(np.float32(len(log_probs)))
