"""N-gram language models in KenLM's formats, ARPA and binary, read and queried through the `kenlm` package.

A model's units are words or characters. A text's lines are its sentences; blank lines are none. Characters are written
with a space as "▁", as SentencePiece does, because a unit of an ARPA file cannot hold white space.
"""

import gzip
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
    """The units of each line of a text. White space counts as one space; the format's control words are left out."""
    for line in text.splitlines():
        words = [word for word in line.split() if word not in (BEGIN, END, UNKNOWN)]
        if words:
            yield words if unit == "word" else list(SPACE.join(words))


class NGram:
    """An n-gram model.

    Attributes:
      path: the file.
      order: n.
      unit: what its units are: "char" where the model knows the space as a unit.
      vocabulary: its units; None for a binary file, which cannot be asked for them.
      is_over_pieces: whether its units are a tokenizer's pieces, which it takes the tokenizer to find in a text.
    """

    def __init__(self, path: str | Path):
        """Reads an ARPA file, plain or .gz, or one of KenLM's binary files.

        Raises:
          DataError: the file is missing, or is neither.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path} does not exist: make an n-gram model with `jax-speechlm train-ngram --out {path}`")
        try:
            with tempfile.TemporaryDirectory() as folder:
                plain = self.path
                if self.path.suffix == ".gz":  # KenLM reads it only where it was built with zlib
                    plain = Path(folder) / self.path.stem
                    with gzip.open(self.path) as packed, plain.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                self.vocabulary = _read_vocabulary(plain)
                self._model = _open(plain)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise DataError(
                f"{path} is not a readable n-gram model ({reason}); make it anew with `jax-speechlm train-ngram`, or "
                "with KenLM's lmplz and build_binary"
            ) from error
        self.order: int = self._model.order
        self.unit: Unit = "char" if SPACE in self else "word"
        self.is_over_pieces = any(SPACE in unit and len(unit) > 1 for unit in self.vocabulary or ())

    def __contains__(self, unit: str) -> bool:
        return unit in self._model

    def begin(self) -> Any:
        """The state at the start of a sentence. States are hashable; equal ones predict the same."""
        state = _kenlm().State()
        self._model.BeginSentenceWrite(state)
        return state

    def nowhere(self) -> Any:
        """The state without any context."""
        state = _kenlm().State()
        self._model.NullContextWrite(state)
        return state

    def extend(self, state: Any, unit: str) -> tuple[float, Any]:
        """Log probability of a unit after a state, in nats, and the state behind it. "</s>" ends a sentence."""
        after = _kenlm().State()
        return _LN10 * self._model.BaseScore(state, unit, after), after

    def score(self, text: str) -> float:
        """Log probability of a text in nats: of every unit and every end of a line, units unknown as "<unk>".

        Raises:
          DataError: the units are a tokenizer's pieces.
        """
        if self.is_over_pieces:
            raise DataError(
                f"{self.path} is over a tokenizer's pieces: it serves as --lm with that tokenizer, not where whole "
                "texts are scored; train one with --unit word or char for that"
            )
        total = 0.0
        for units in sentences(text, self.unit):
            state = self.begin()
            for unit in (*units, END):
                log_prob, state = self.extend(state, unit)
                total += log_prob
        return total

    def count_unknown(self, text: str) -> int:
        """How many of a text's units the model does not know."""
        return sum(unit not in self for units in sentences(text, self.unit) for unit in units)


def _kenlm():
    try:
        import kenlm
    except ImportError:
        raise DataError("n-gram models need the kenlm package: pip install kenlm (it wants a C++ compiler)") from None
    return kenlm


def _open(path: Path) -> Any:
    kenlm = _kenlm()
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return kenlm.Model(str(path), config)


def _read_vocabulary(path: Path) -> frozenset[str] | None:
    """The units of an ARPA file, from its section of unigrams; None where the file is binary."""
    with path.open("rb") as file:
        if file.read(6) == b"mmap l":  # how KenLM's binary files begin
            return None
    units = []
    with path.open(encoding="utf-8") as lines:
        inside = False
        for line in lines:
            if inside and (not line.strip() or line.startswith("\\")):
                break
            if inside:
                units.append(line.split("\t", 2)[1].rstrip("\n"))
            inside = inside or line.startswith("\\1-grams:")
    return frozenset(units)
