"""Ensembles of language models with one vocabulary: the mean of their probabilities, token by token."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.ensemble import mean_probability
from jax_speechlm.inference.lm.causal import LanguageModel, TextScorer
from jax_speechlm.training.checkpoints import CheckpointError


class LanguageEnsemble(TextScorer):
    """Mixture of language models: P(token) is the mean over the members. Has the interface that scoring and fusion use.

    Each member is given as much history as it was trained on; members may differ in size.
    """

    def __init__(self, members: Sequence[LanguageModel]):
        """Raises `CheckpointError` if the members' tokenizers differ."""
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
        """Reads runs of causal language models; raises `CheckpointError` as `LanguageModel.load` and `__init__` do."""
        return cls([LanguageModel.load(path) for path in paths])

    @property
    def tokenizer(self) -> Tokenizer:
        return self.members[0].tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return self.members[0].vocabulary

    @property
    def context(self) -> int:
        """Shortest context of the members, in tokens."""
        return min(member.context for member in self.members)

    @property
    def checkpoint(self) -> str:
        """The members' folders, for messages."""
        return " + ".join(str(member.checkpoint) for member in self.members)

    def token_nll(
        self, documents: Sequence[Sequence[int]], *, stride: int | None = None
    ) -> list[Float[np.ndarray, " predictions"]]:
        """Computes the mixture's `LanguageModel.token_nll`; each member uses windows of its own context."""
        each = [member.token_nll(documents, stride=stride) for member in self.members]
        return [-mean_probability([-nats for nats in document]) for document in zip(*each, strict=True)]

    def session(self, slots: int, length: int, width: int) -> "EnsembleSession":
        """Returns a state that scores prefixes token by token, as `LanguageModel.session`."""
        return EnsembleSession([member.session(slots, length, width) for member in self.members])


class EnsembleSession:
    """Keeps the same prefixes in one `DecodeState` per member."""

    def __init__(self, sessions: Sequence[Any]):
        self._sessions = sessions

    def start(self, slot: int) -> Float[np.ndarray, " vocab"]:
        """As `DecodeState.start`."""
        return mean_probability([session.start(slot) for session in self._sessions])

    def extend(
        self, parents: Sequence[int], tokens: Sequence[int], slots: Sequence[int]
    ) -> Float[np.ndarray, "prefixes vocab"]:
        """As `DecodeState.extend`."""
        return mean_probability([session.extend(parents, tokens, slots) for session in self._sessions])
