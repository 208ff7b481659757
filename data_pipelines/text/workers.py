"""A function over the texts of a stream of documents, in processes, in order."""

import collections
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from data_pipelines.audio.clips import Dropped
from data_pipelines.text.documents import Document

Result = TypeVar("Result")
Item = Document | Dropped

_CHUNK = 256 * 1024  # characters handed over at a time


class Workers:
    """Processes that share the work; with one worker, all is done in this process.

    New processes import the program's main module: a script that asks for more than one worker needs the usual
    `if __name__ == "__main__":`.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
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
        """Items with `function(text, language)` of each document, and None beside what was dropped before."""
        if self._pool is None:
            for item in items:
                yield item, function(item.text, item.language) if isinstance(item, Document) else None
            return
        pending: collections.deque[tuple[list[Item], Future[list[Result]]]] = collections.deque()
        for chunk in _chunks(items):
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


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.text) if isinstance(item, Document) else 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
