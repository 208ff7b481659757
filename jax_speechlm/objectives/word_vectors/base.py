"""What the objectives of word vectors share: settings, the counts of words, and the vectors to use."""

import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.config import Config
from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import ObjectiveConfig


class WordVectorObjective(ObjectiveConfig):
    """Settings of an objective whose model is `WordVectors`."""

    def vectors(self, params: Params) -> Float[Array | np.ndarray, "vocab dim"]:
        """Returns the vectors of words that a trained model is used for, by token id."""
        return params["words"]


def word_counts(model: Config, tokenizer: Tokenizer | None, objective: str) -> Int[np.ndarray, " words"]:
    """Returns the occurrences of each word in the tokenizer's training texts; word i has token id i + 1.

    Raises:
      ValueError: the model has no word vectors, or the tokenizer's pieces are not words.
    """
    if not isinstance(model, WordVectorsConfig):
        raise ValueError(f"{objective} trains word vectors, not a {model.kind}: set model to a WordVectorsConfig")
    counts = getattr(tokenizer, "counts", None)
    if counts is None:
        raise ValueError(
            f"{objective} needs the counts of words: make a tokenizer with jax-speechlm train-tokenizer --kind word, "
            "and set data.tokenizer to it"
        )
    return np.asarray(counts, np.int64)
