"""An index of passages by their words (BM25) and, with a text encoder, by their meaning.

A folder of it has `index.json` (version, language, encoder, a digest of each file), `passages.parquet`, `words/` as
bm25s writes it, and with an encoder `vectors.npy`: float32 of unit length [passages, dim].
"""

import dataclasses
import functools
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import file_sha256, write_json
from data_pipelines.text.cleaning import stem, strip_stop_words
from jax_speechlm.apps.question_answering.passages import Passage
from jax_speechlm.inference.text_embed import TextEmbedder

VERSION = 1
_META = "index.json"
_DEPTH = 100  # best passages of each ranking that are fused
_RANK_OFFSET = 60  # k of reciprocal rank fusion
_ALIKE = 0.99  # cosine of a vector to that of the same text by the same encoder, on whatever device
_WORD = re.compile(r"\w+")
logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s itself sets it to DEBUG


@dataclasses.dataclass(frozen=True, eq=False)
class PassageIndex:
    """Passages that are found by questions.

    Attributes:
      words: BM25 scores of the passages' terms.
      language: two-letter code, of stems and stop words.
      encoder: None ranks by words alone; otherwise `vectors` are the passages' by it.
    """

    passages: Sequence[Passage]
    words: bm25s.BM25
    language: str
    encoder: TextEmbedder | None = None
    vectors: Float[np.ndarray, "passages dim"] | None = None

    @classmethod
    def build(
        cls, passages: Iterable[Passage], language: str = "en", encoder: TextEmbedder | None = None
    ) -> "PassageIndex":
        """Indexes passages.

        Raises:
          DataError: there are none with a word to find them by, or the language is unknown.
        """
        passages = list(passages)
        listed = [terms(passage.text, language) for passage in passages]
        if not any(listed):
            raise DataError("there are no passages: the texts have no words, or only such as every text has")
        words = bm25s.BM25(method="lucene")
        words.index(listed, show_progress=False)
        vectors = None if encoder is None else unit_vectors(encoder, [passage.text for passage in passages])
        return cls(passages, words, language, encoder, vectors)

    def save(self, folder: Path) -> None:
        """Writes the index, in place of another one.

        Raises:
          DataError: the folder has something else.
        """
        if folder.exists() and not (folder / _META).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} is there already and no index of passages: name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _META).unlink(missing_ok=True)  # written last: an index that is cut short has none
        columns = {name: [getattr(each, name) for each in self.passages] for name in Passage._fields}
        pq.write_table(pa.table(columns), folder / "passages.parquet")
        self.words.save(folder / "words", show_progress=False)
        files = ["passages.parquet", *sorted(f"words/{file.name}" for file in (folder / "words").iterdir())]
        if self.encoder is not None:
            np.save(folder / "vectors.npy", self.vectors, allow_pickle=False)
            files.append("vectors.npy")
        meta = {
            "version": VERSION,
            "language": self.language,
            "encoder": None if self.encoder is None else os.path.abspath(self.encoder.run.checkpoint),
            "sha256": {name: file_sha256(folder / name) for name in files},
        }
        write_json(folder / _META, meta)

    @classmethod
    def open(cls, folder: Path, encoder: Path | None = None) -> "PassageIndex":
        """Reads an index.

        Args:
          encoder: where the run of its encoder is now; None takes the place that it had.

        Raises:
          DataError: the folder is no index, is damaged, or belongs to another encoder.
        """
        remedy = "make it again with `jax-speechlm index-text`"
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            digests = meta["sha256"]
            if meta["version"] != VERSION:
                raise DataError(f"{folder}: is an index of version {meta['version']}, not {VERSION}: {remedy}")
            for name, digest in digests.items():
                if file_sha256(folder / name) != digest:
                    raise DataError(f"{folder / name}: differs from what was written: {remedy}")
            columns = pq.read_table(folder / "passages.parquet").select(Passage._fields).to_pydict()
            passages = [Passage(*row) for row in zip(*columns.values(), strict=True)]
            words = bm25s.BM25.load(folder / "words", mmap=True, show_progress=False)
            language, path = meta["language"], meta["encoder"]
            vectors = None
            if path is not None:
                vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            missing = Path(error.filename or folder).name
            raise DataError(f"{folder}: is no complete index of passages ({missing} is missing): {remedy}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise DataError(f"{folder}: is no index of passages, or damaged ({error!r}): {remedy}") from error
        if path is None:
            if encoder is not None:
                raise DataError(f"{folder}: was made without an encoder: leave out --encoder, or {remedy} --encoder")
            return cls(passages, words, language)
        embedder = TextEmbedder.load(encoder or path)
        first = unit_vectors(embedder, [passages[0].text])[0]
        if first.shape != vectors.shape[1:] or first @ vectors[0] < _ALIKE:
            raise DataError(f"{folder}: its vectors are of another encoder than {encoder or path}: name that one")
        return cls(passages, words, language, embedder, vectors)

    def search(self, question: str, count: int = 5) -> list[int]:
        """Finds passages by reciprocal rank fusion of words and meaning; returns their numbers, the best first.

        Without an encoder a passage must share a term with the question.
        """
        rankings = [_ranked(self.word_scores(question), 0.0)]
        if self.encoder is not None and question.strip():
            rankings.append(_ranked(self.vectors @ unit_vectors(self.encoder, [question])[0], -math.inf))
        return fused(rankings)[:count]

    def word_scores(self, question: str) -> Float[np.ndarray, " passages"]:
        """Computes the BM25 score of every passage."""
        known = [term for term in terms(question, self.language) if term in self.words.vocab_dict]
        return self.words.get_scores(known) if known else np.zeros(len(self.passages), np.float32)

    def coverage(self, question: str, text: str) -> float:
        """Returns the share of a question's terms that a text has, each weighted by its inverse document frequency."""
        wanted = {term: self._weight(term) for term in terms(question, self.language)}
        has = set(terms(text, self.language))
        return sum(weight for term, weight in wanted.items() if term in has) / sum(wanted.values()) if wanted else 0.0

    def similarities(self, question: str, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Computes how much each text has of a question: its coverage, or with an encoder the mean with the cosine."""
        shares = np.array([self.coverage(question, text) for text in texts])
        if self.encoder is None:
            return shares
        vector, *others = unit_vectors(self.encoder, [question, *texts])
        return (shares + np.clip(np.stack(others) @ vector, 0, 1)) / 2

    def _weight(self, term: str) -> float:
        count, starts = len(self.passages), self.words.scores["indptr"]
        number = self.words.vocab_dict.get(term)
        holding = 0 if number is None else int(starts[number + 1] - starts[number])
        return math.log(1 + (count - holding + 0.5) / (holding + 0.5))


def terms(text: str, language: str) -> list[str]:
    """Returns the stems of the words of a text, without stop words. Raises `DataError` of an unknown language."""
    try:
        kept = strip_stop_words(" ".join(_WORD.findall(text)), language)
        return [_stem(word, language) for word in kept.split()]
    except DataError as error:
        raise DataError(f"--language {language}: there are no stems and stop words of it") from error


@functools.lru_cache(maxsize=1 << 18)
def _stem(word: str, language: str) -> str:
    return stem(word, language)


def unit_vectors(encoder: TextEmbedder, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
    """Computes vectors of unit length; of a text without a token a vector of zeros."""
    vectors = encoder.vectors(texts)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def fused(rankings: Iterable[Sequence[int]]) -> list[int]:
    """Joins rankings by the sum of 1 / (60 + rank) (Cormack et al. 2009); of equal ones the lower number is first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (_RANK_OFFSET + rank)
    return sorted(scores, key=lambda number: (-scores[number], number))


def _ranked(scores: Float[np.ndarray, " passages"], above: float) -> list[int]:
    """Returns the numbers of the best passages whose score is above a bound; of equal ones the lower is first."""
    return [number for number in np.argsort(-scores, kind="stable")[:_DEPTH].tolist() if scores[number] > above]
