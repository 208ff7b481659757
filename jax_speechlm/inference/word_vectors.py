"""Tables of word vectors: nearest words, similarities and analogies."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.storage.word2vec import read_word2vec
from data_pipelines.tokenizers.words import split_words
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.inference.text_embed import write_embeddings
from jax_speechlm.objectives.word_vectors.base import WordVectorObjective
from jax_speechlm.training.runs import LoadedRun


class Neighbour(NamedTuple):
    """A word and its cosine similarity to a query."""

    word: str
    similarity: float


@dataclasses.dataclass(frozen=True, eq=False)
class WordTable:
    """Words and a vector of each.

    Attributes:
      words: the most frequent first, if the table was trained here.
      vectors: float32 [words, dim].
      source: the checkpoint or file that it was read from, for messages.
    """

    abilities: ClassVar[tuple[str, ...]] = ("embed",)

    words: tuple[str, ...]
    vectors: Float[np.ndarray, "words dim"] = dataclasses.field(repr=False)
    source: str = "the table"

    @classmethod
    def load(cls, path: str | Path) -> "WordTable":
        """Reads a run's newest checkpoint, a `checkpoints/<step>` folder, or a file in the text format of word2vec.

        Raises:
          CheckpointError: no checkpoint can be read, or it has no word vectors.
          DataError: the file is not of this format.
        """
        if os.path.isfile(path):
            return cls(*read_word2vec(path), str(path))
        run = LoadedRun.read(path, on_host=True)
        objective = run.experiment.objective
        if not isinstance(objective, WordVectorObjective):
            raise CheckpointError(f"{run.checkpoint}: was trained by {objective.kind}, which has no vectors of words")
        words = run.tokenizer.pieces[1:]
        return cls(
            words, np.asarray(objective.vectors(run.params), np.float32)[1 : 1 + len(words)], str(run.checkpoint)
        )

    def vector(self, word: str) -> Float[np.ndarray, " dim"]:
        """Returns the vector of a word, as it is or else casefolded. Raises `DataError` if it is unknown."""
        return self.vectors[self._row(word)]

    def __contains__(self, word: str) -> bool:
        return word in self._rows or word.casefold() in self._rows

    def spelling(self, word: str) -> str:
        """Returns a word as it stands in the table. Raises `DataError` if it is unknown."""
        return self.words[self._row(word)]

    def similarity(self, first: str, second: str) -> float:
        """Returns the cosine similarity of two words. Raises `DataError` for an unknown word."""
        return cosine(self.vector(first), self.vector(second))

    def nearest(
        self, query: str | Float[np.ndarray, " dim"], count: int = 10, *, without: Sequence[str] = ()
    ) -> list[Neighbour]:
        """Returns the words with the greatest cosine similarity to a word, without itself, or to a vector.

        Args:
          without: words to leave out.

        Raises:
          DataError: a word is unknown.
        """
        if isinstance(query, str):
            query, without = self.vector(query), (query, *without)
        similarities = self._unit @ _unit(np.asarray(query, np.float32))
        similarities[[self._row(word) for word in without]] = -np.inf
        count = min(count, len(self.words) - len(set(without)))
        best = np.argpartition(-similarities, max(count - 1, 0))[:count]
        best = best[np.argsort(-similarities[best], kind="stable")]
        return [Neighbour(self.words[row], float(similarities[row])) for row in best]

    def analogy(self, first: str, second: str, third: str, count: int = 1) -> list[Neighbour]:
        """Returns the words that are to `third` as `second` is to `first`.

        They are nearest to second - first + third, of unit vectors, and none of the three (Mikolov et al. 2013).

        Raises:
          DataError: a word is unknown.
        """
        one, two, three = (self._unit[self._row(word)] for word in (first, second, third))
        return self.nearest(two - one + three, count, without=(first, second, third))

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Computes the mean vector of the known words of each text; 0 for a text without any."""
        means = np.zeros((len(texts), self.vectors.shape[1]), np.float32)
        for place, text in enumerate(texts):
            rows = [self._rows[word] for word in split_words(text) if word in self._rows]
            if rows:
                means[place] = self.vectors[rows].mean(axis=0)
        return means

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    @functools.cached_property
    def _unit(self) -> Float[np.ndarray, "words dim"]:
        return _unit(self.vectors)

    def _row(self, word: str) -> int:
        row = self._rows.get(word, self._rows.get(word.casefold()))
        if row is None:
            raise DataError(f"{self.source} has no vector of {word!r}, only of {len(self.words):,} other words")
        return row


def embed_texts(
    checkpoint: Positional[Path], texts: Positional[tuple[str, ...]], out: Path, lines: bool = False
) -> None:
    """Writes the mean vectors of the words of texts.

    The NumPy file has `texts`, and `embeddings`, float32 [texts, dim].

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      texts: texts, or single words.
      out: the .npz file to write.
      lines: the texts are names of text files, of which each line is a text.
    """
    write_embeddings(out, texts, lines, WordTable.load(checkpoint).embed)


def cosine(first: Float[np.ndarray, " dim"], second: Float[np.ndarray, " dim"]) -> float:
    """Returns the cosine similarity of two vectors; 0 if one of them is 0."""
    return float(_unit(first.astype(np.float64)) @ _unit(second.astype(np.float64)))


def _unit(vectors: Float[np.ndarray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(vectors.dtype).tiny)
