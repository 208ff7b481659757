"""Passages of texts, with their sources."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.audio.clips import Dropped
from data_pipelines.sources.text_files import text_files
from data_pipelines.storage import index as indexes
from data_pipelines.text.cleaning import split_sentences

MOST_WORDS = 100


class Passage(NamedTuple):
    """A stretch of a text of at most `MOST_WORDS` words, and where it is from."""

    text: str
    source: str


def passages_of(text: str, source: str) -> Iterator[Passage]:
    """Cuts a text into passages of whole sentences; of a sentence that is too long by itself, of whole words."""
    taken: list[str] = []
    for sentence in split_sentences(text):
        words = sentence.split()
        if taken and len(taken) + len(words) > MOST_WORDS:
            yield Passage(" ".join(taken), source)
            taken = []
        taken += words
        while len(taken) > MOST_WORDS:
            yield Passage(" ".join(taken[:MOST_WORDS]), source)
            taken = taken[MOST_WORDS:]
    if taken:
        yield Passage(" ".join(taken), source)


def of_files(patterns: Sequence[str], encoding: str) -> Iterator[Passage]:
    """Reads the passages of .txt, .jsonl and .parquet files, plain or compressed; what is malformed is named on stderr.

    The source of a passage is the file with the line where its paragraph begins, or the row's `id`.

    Raises:
      DataError: a file is missing or of another kind.
    """
    for item in text_files(patterns, "passages", unit="paragraph", encoding=encoding).documents():
        if isinstance(item, Dropped):
            print(f"warning: {item.detail}", file=sys.stderr)
        else:
            yield from passages_of(item.text, item.id)


def of_sets(data_dir: Path, names: Iterable[str]) -> Iterator[Passage]:
    """Reads the passages of all splits of prepared sets; the source is set and id. Raises `DataError`."""
    for name in names:
        for split in indexes.splits_of(data_dir / name):
            for part in indexes.read_index(data_dir / name, split).parts:
                for document, text in zip(part.texts("id"), part.texts("text"), strict=True):
                    yield from passages_of(text, f"{name}: {document}")
