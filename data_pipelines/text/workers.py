"""Applies a function to the texts of a stream of documents, in processes, in order."""

import collections
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.grouping import group_by_size
from data_pipelines.text.documents import Document

Result = TypeVar("Result")
Item = Document | Dropped

CHUNK_CHARACTERS = 256 * 1024  # handed to a process at a time


class Workers:
    """Processes that share the work; with one worker, this process does all of it.

    New processes import the program's main module: a script that requests more than one worker needs the usual `if
    __name__ == "__main__":`.
    """

    def __init__(self, num_workers: int, chunk_characters: int = CHUNK_CHARACTERS):
        self._num_workers, self._chunk_characters = num_workers, chunk_characters
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
        self._pool = ProcessPoolExecutor(num_workers, context) if num_workers > 1 else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[str, str], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | None]]:
        """Yields the items, each document with `function(text, language)`, and each dropped item with None."""
        if self._pool is None:
            for item in items:
                yield item, function(item.text, item.language) if isinstance(item, Document) else None
            return
        pending: collections.deque[tuple[list[Item], Future[list[Result]]]] = collections.deque()
        for chunk in group_by_size(items, _size, self._chunk_characters):
            texts = [(item.text, item.language) for item in chunk if isinstance(item, Document)]
            pending.append((chunk, self._pool.submit(_apply, function, texts)))
            if len(pending) > 2 * self._num_workers:
                yield from _joined(*pending.popleft())
        while pending:
            yield from _joined(*pending.popleft())


def _apply(function: Callable[[str, str], Result], texts: list[tuple[str, str]]) -> list[Result]:
    return [function(text, language) for text, language in texts]


def _joined(chunk: list[Item], future: Future[list[Result]]) -> Iterator[tuple[Item, Result | None]]:
    results = iter(future.result())
    for item in chunk:
        yield item, next(results) if isinstance(item, Document) else None


def _size(item: Item) -> int:
    return len(item.text) if isinstance(item, Document) else 1
