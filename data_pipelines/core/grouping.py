"""Groups of items of bounded total size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def group_by_size(items: Iterable[Item], size: Callable[[Item], int], min_size: int) -> Iterator[list[Item]]:
    """Yields consecutive items in lists; a list ends at the item with which its total size reaches `min_size`.

    Args:
      items: read lazily; one list is in memory.
      min_size: total size of every list except the last.
    """
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= min_size:
            yield group
            group, total = [], 0
    if group:
        yield group
