"""The sentence of a grammar that is nearest to a recognised text."""

from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from jax_speechlm.decoding.automaton import Graph

_JOINED = 3  # recognised words that may be one word of the grammar, such as "cap a chino"


class Nearest(NamedTuple):
    """A sentence of a grammar, and its similarity to a text: 1 less the characters to change, as a share of both."""

    sentence: str
    similarity: float


def nearest_sentence(text: str, words: Graph) -> Nearest:
    """Finds the sentence of an automaton without cycles with the fewest edits of characters to a text.

    Words are compared whole: a word of the grammar with one to three recognised ones, by the Levenshtein distance of
    their letters (rapidfuzz); or it is missing, or a recognised word is left out, at the number of its letters.

    Args:
      text: words as of `grammar.normal`.
      words: deterministic, with at least one sentence.
    """
    said, order = text.split(), words.in_order()
    vocabulary = sorted({word for arcs in words.arcs for word, _ in arcs})
    number = {word: place for place, word in enumerate(vocabulary)}
    spans = [(first, size) for first in range(len(said)) for size in range(1, min(_JOINED, len(said) - first) + 1)]
    joined = ["".join(said[first : first + size]) for first, size in spans]
    distance = cdist(joined, vocabulary, scorer=Levenshtein.distance, dtype=np.int32) if spans else np.zeros((0, 0))
    place_of = {span: place for place, span in enumerate(spans)}
    cost = np.full((len(said) + 1, len(words.arcs)), np.inf)
    origin: dict[tuple[int, int], tuple[int, int, str]] = {}
    cost[0, 0] = 0

    def relax(at: tuple[int, int], value: float, source: tuple[int, int], word: str) -> None:
        if value < cost[at]:
            cost[at], origin[at] = value, (*source, word)

    for first in range(len(said) + 1):
        for state in order:
            value, at = cost[first, state], (first, state)
            if not np.isfinite(value):
                continue
            if first < len(said):
                relax((first + 1, state), value + len(said[first]), at, "")
            for word, target in words.arcs[state]:
                relax((first, target), value + len(word), at, word)
                for size in range(1, min(_JOINED, len(said) - first) + 1):
                    edits = distance[place_of[first, size], number[word]]
                    relax((first + size, target), value + edits, at, word)

    end = min(sorted(words.final), key=lambda state: cost[len(said), state])
    at, found = (len(said), end), []
    while at in origin:
        *source, word = origin[at]
        found.append(word)
        at = tuple(source)
    sentence = " ".join(word for word in reversed(found) if word)
    letters = sum(map(len, said)) + len(sentence.replace(" ", ""))
    return Nearest(sentence, float(1 - cost[len(said), end] / letters) if letters else 0.0)
