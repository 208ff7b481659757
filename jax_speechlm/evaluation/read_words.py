"""A text beside the words that were recognised of its reading."""

from collections.abc import Sequence

import numpy as np

Edit = tuple[int | None, int | None]
"""A place in the text and one in what was recognised; one of them is None of a word left out, or inserted."""

_GAP = 0.6  # cost of a word left out or inserted; a word in place of another costs their distance, at most 1


def match_words(expected: Sequence[str], heard: Sequence[str]) -> list[Edit]:
    """Aligns words with those that were recognised, at the least cost.

    A word in place of another costs the share of letters that differ. Of a word said twice, the last one counts.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    cost = np.zeros((len(expected) + 1, len(heard) + 1))
    cost[:, 0], cost[0] = _GAP * np.arange(len(expected) + 1), _GAP * np.arange(len(heard) + 1)
    apart = process.cdist(expected, heard, scorer=Levenshtein.normalized_distance, dtype=np.float64)
    for i in range(1, len(expected) + 1):
        for j in range(1, len(heard) + 1):
            gap = min(cost[i - 1, j], cost[i, j - 1]) + _GAP
            cost[i, j] = min(cost[i - 1, j - 1] + apart[i - 1, j - 1], gap)
    edits: list[Edit] = []
    i, j = len(expected), len(heard)
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + apart[i - 1, j - 1]:
            i, j = i - 1, j - 1
            edits.append((i, j))
        elif j and cost[i, j] == cost[i, j - 1] + _GAP:
            j -= 1
            edits.append((None, j))
        else:
            i -= 1
            edits.append((i, None))
    return edits[::-1]


def repetitions(expected: Sequence[str], heard: Sequence[str], edits: Sequence[Edit]) -> set[int]:
    """Returns the inserted words that are a word of the text, or its beginning, said once more.

    Of a run of n inserted words, each is compared with the n words of the text before it and after it.
    """
    again: set[int] = set()
    run: list[int] = []
    following = 0
    for place, theirs in [*edits, (len(expected), None)]:
        if place is None:
            run.append(theirs)
            continue
        near = expected[max(following - len(run), 0) : following + len(run)]
        again |= {each for each in run if heard[each] and any(word.startswith(heard[each]) for word in near)}
        run, following = [], place + 1
    return again
