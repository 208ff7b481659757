"""N-gram language models in KenLM's formats, ARPA and binary, read and queried through the `kenlm` package.

The units of a model are words or characters. The lines of a text are its sentences; blank lines are skipped. In models
of characters a space is "▁", as in SentencePiece, because the units of an ARPA file cannot contain white space.
"""

import gzip
import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_pipelines.core.errors import DataError

Unit = Literal["word", "char"]

SPACE = "\u2581"
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
_LN10 = math.log(10)


def sentences(text: str, unit: Unit) -> Iterator[list[str]]:
    """Yields the units of every line of a text. Runs of white space are one space; control words are dropped."""
    for line in text.splitlines():
        words = [word for word in line.split() if word not in (BEGIN, END, UNKNOWN)]
        if words:
            yield words if unit == "word" else list(SPACE.join(words))


class NGram:
    """An n-gram model.

    Attributes:
      unit: "char" if the space is a unit of the model, else "word".
      vocabulary: units of the model; None for a binary file, which does not list them.
      is_over_pieces: whether the units are a tokenizer's pieces, so that only the tokenizer can find them in a text.
    """

    def __init__(self, path: str | Path):
        """Reads an ARPA file, plain or .gz, or one of KenLM's binary files.

        Raises:
          DataError: the file is missing or has another format.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(
                f"{path} does not exist: train an n-gram model with `jax-speechlm train-ngram --out {path}`"
            )
        try:
            with tempfile.TemporaryDirectory() as folder:
                plain = self.path
                if self.path.suffix == ".gz":  # KenLM reads it only if it was built with zlib
                    plain = Path(folder) / self.path.stem
                    with gzip.open(self.path) as packed, plain.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                self.vocabulary = _read_vocabulary(plain)
                config = _kenlm().Config()
                config.show_progress = False
                config.arpa_complain = _kenlm().ARPALoadComplain.NONE
                self._model = _kenlm().Model(str(plain), config)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise DataError(
                f"{path} is not a readable n-gram model ({reason}); train it again with `jax-speechlm train-ngram`, or "
                "with KenLM's lmplz and build_binary"
            ) from error
        self.unit: Unit = "char" if SPACE in self else "word"
        self.is_over_pieces = any(SPACE in unit and len(unit) > 1 for unit in self.vocabulary or ())

    def __contains__(self, unit: str) -> bool:
        return unit in self._model

    def begin(self) -> Any:
        """Returns the state at the start of a sentence. States are hashable; equal states give equal scores."""
        state = _kenlm().State()
        self._model.BeginSentenceWrite(state)
        return state

    def extend(self, state: Any, unit: str) -> tuple[float, Any]:
        """Returns the log-probability of a unit in nats, and the state after it. "</s>" ends a sentence."""
        after = _kenlm().State()
        return _LN10 * self._model.BaseScore(state, unit, after), after

    def score(self, text: str) -> float:
        """Returns the log-probability of a text in nats, over all units and line ends, with "<unk>" for unknown units.

        Raises:
          DataError: the units are a tokenizer's pieces.
        """
        if self.is_over_pieces:
            raise DataError(
                f"{self.path} is over a tokenizer's pieces: it can be used as --lm with that tokenizer, but not to "
                "score texts; for that, train a model with --unit word or char"
            )
        total = 0.0
        for units in sentences(text, self.unit):
            state = self.begin()
            for unit in (*units, END):
                log_prob, state = self.extend(state, unit)
                total += log_prob
        return total

    def count_unknown(self, text: str) -> int:
        """Returns the number of units of a text that are not in the vocabulary."""
        return sum(unit not in self for units in sentences(text, self.unit) for unit in units)


def _kenlm():
    try:
        import kenlm
    except ImportError:
        raise DataError("n-gram models need the kenlm package: pip install kenlm (it needs a C++ compiler)") from None
    return kenlm


def _read_vocabulary(path: Path) -> frozenset[str] | None:
    """Reads the units of an ARPA file from its unigrams; returns None for a binary file."""
    with path.open("rb") as file:
        if file.read(6) == b"mmap l":  # first bytes of KenLM's binary files
            return None
    with path.open(encoding="utf-8") as file:
        section = itertools.dropwhile(lambda line: not line.startswith("\\1-grams:"), file)
        next(section, None)
        unigrams = itertools.takewhile(lambda line: line.strip() and not line.startswith("\\"), section)
        return frozenset(line.split("\t", 2)[1].rstrip("\n") for line in unigrams)
