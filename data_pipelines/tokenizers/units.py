"""Tokenizer of speech units: a text is the numbers of units, "12 5 9"."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import BLANK, Kind

_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class UnitTokenizer:
    """One id per unit: unit `u` has id u + 1.

    Attributes:
      num_units: units of the k-means or of the codebook.
      units: its fingerprint; the same numbers of another one mean other sounds.
      merges_repeats: whether equal units in a row are one token, as in `storage.units.Units.sequence`.
    """

    num_units: int
    units: str
    merges_repeats: bool = True
    kind: Kind = dataclasses.field(default="units", init=False)
    begin: ClassVar[None] = None
    has_prefix: ClassVar[bool] = True
    other_ends: ClassVar[tuple[int, ...]] = ()

    @property
    def vocab_size(self) -> int:
        return self.num_units + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        return short_digest(f"units\0{self.num_units}\0{self.units}\0{self.merges_repeats}".encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return ("", *map(str, range(self.num_units)))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: id_ for id_, piece in enumerate(self.pieces) if id_ != BLANK}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of units that are separated by white space.

        Raises:
          DataError: a word is no unit; left out, it would change the speech without notice.
        """
        words = text.split()
        try:
            ids = [self._ids[word] for word in words]
        except KeyError:
            unknown = list(dict.fromkeys(self.unknown(text)))
            shown = ", ".join(repr(word[:40]) for word in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise DataError(
                f"no speech units: {shown}{more}; write numbers from 0 to {self.num_units - 1} with spaces between "
                'them, such as "12 5 9"'
            ) from None
        return [id_ for id_, _ in itertools.groupby(ids)] if self.merges_repeats else ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.pieces[id_] for id_ in ids if id_ != BLANK)

    def unknown(self, text: str) -> list[str]:
        """Returns the words that are no units."""
        return [word for word in text.split() if word not in self._ids]

    def save(self, directory: Path | str) -> None:
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content = json.dumps(dataclasses.asdict(self), indent=1)
        (directory / "tokenizer.json").write_text(content + "\n", encoding="utf-8")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "UnitTokenizer":
        """Makes a tokenizer from the JSON that `save` wrote."""
        return cls(saved["num_units"], saved["units"], saved["merges_repeats"])
