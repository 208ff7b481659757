"""Interface of scorers that a beam search adds to the acoustic score: language models, lists of phrases."""

import abc
import array
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

MEMORY = 1_000_000  # cached steps, about 150 bytes each
_PREFIXES_A_ROW = 16  # as in a beam


@runtime_checkable
class Scorer(Protocol):
    """Incremental score of token sequences in nats.

    A state is a number that represents a prefix. States are valid for one search: `start` may discard older ones. Token
    0, the blank, does not change a prefix.

    Attributes:
      alpha: weight of the log-probabilities.
      beta: bonus per unit (word or token).
      rows_at_once: efficient number of utterances to search in lockstep.
    """

    alpha: float
    beta: float
    rows_at_once: int

    def start(self, prefixes: int, max_tokens: int) -> int:
        """Starts a search of up to `prefixes` prefixes of `max_tokens` tokens. Returns the empty prefix's state."""

    def score(
        self, states: Int[np.ndarray, " extensions"], tokens: Int[np.ndarray, " extensions"]
    ) -> Float[np.ndarray, " extensions"]:
        """Returns the scores of extending prefixes by one token, which is never the blank."""

    def advance(
        self, states: Int[np.ndarray, " prefixes"], tokens: Int[np.ndarray, " prefixes"]
    ) -> Int[np.ndarray, " prefixes"]:
        """Extends all prefixes of the search by one token, or keeps them for token 0.

        Returns:
          Their new states. States that are not returned are not used again.
        """

    def final(self, states: Int[np.ndarray, " prefixes"]) -> Float[np.ndarray, " prefixes"]:
        """Returns the scores of ending the transcripts."""


def unweighted(
    scorer: Scorer, sequences: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, " sequences"], Float[np.ndarray, " sequences"]]:
    """Returns a scorer's log-probability and number of units of every token sequence, its end included."""
    sums = {(1.0, 0.0): np.zeros(len(sequences)), (0.0, 1.0): np.zeros(len(sequences))}  # by (alpha, beta)
    before = scorer.alpha, scorer.beta
    at_once = _PREFIXES_A_ROW * scorer.rows_at_once
    for first in range(0, len(sequences), at_once):
        part = sequences[first : first + at_once]
        tokens = np.zeros((len(part), max(map(len, part))), np.int64)
        for row, sequence in enumerate(part):
            tokens[row, : len(sequence)] = sequence
        states = np.full(len(part), scorer.start(*tokens.shape), np.int64)
        for column in tokens.T:
            valid = np.flatnonzero(column)
            for (scorer.alpha, scorer.beta), total in sums.items():
                total[first + valid] += scorer.score(states[valid], column[valid])
            states = scorer.advance(states, column)
        for (scorer.alpha, scorer.beta), total in sums.items():
            total[first : first + len(part)] += scorer.final(states)
    scorer.alpha, scorer.beta = before
    return tuple(sums.values())


class StepScorer(abc.ABC):
    """Scorer defined for one prefix at a time by the methods `initial`, `step` and `end` of a subclass.

    Prefixes with equal values share a state, and steps are cached.
    """

    alpha = 1.0
    beta = 0.0
    rows_at_once = 32  # more is not faster

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size
        self._forget()

    @abc.abstractmethod
    def initial(self) -> Any:
        """Returns the hashable value of the empty prefix."""

    @abc.abstractmethod
    def step(self, value: Any, token: int) -> tuple[float, int, Any]:
        """Returns log-probability, units, and value of a prefix extended by a token."""

    @abc.abstractmethod
    def end(self, value: Any) -> tuple[float, int]:
        """Returns log-probability and units of the end of the transcript."""

    def start(self, prefixes: int, max_tokens: int) -> int:
        if len(self._steps) > MEMORY:
            self._forget()
        return self._states[self.initial()]

    def score(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        steps = self._steps
        index = [steps[key] for key in (states * self._vocab_size + tokens).tolist()]
        return self.alpha * np.frombuffer(self._log_prob)[index] + self.beta * np.frombuffer(self._units)[index]

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        states, grown = states.copy(), np.flatnonzero(tokens)
        keys = (states[grown] * self._vocab_size + tokens[grown]).tolist()
        states[grown] = [self._after[self._steps[key]] for key in keys]
        return states

    def final(self, states: np.ndarray) -> np.ndarray:
        values = self._states.values_by_number
        ends = np.array([self.end(values[state]) for state in states.tolist()], np.float64).reshape(-1, 2)
        return ends @ np.array([self.alpha, self.beta])

    def _forget(self) -> None:
        self._states = Numbers()
        self._steps = _Memory(self._compute)
        # by cached step
        self._log_prob, self._units, self._after = array.array("d"), array.array("d"), array.array("q")

    def _compute(self, key: int) -> int:
        state, token = divmod(key, self._vocab_size)
        log_prob, units, value = self.step(self._states.values_by_number[state], token)
        self._log_prob.append(log_prob)
        self._units.append(units)
        self._after.append(self._states[value])
        return len(self._after) - 1


class Numbers(dict):
    """Numbers values in the order of their first use."""

    def __init__(self):
        self.values_by_number = []

    def __missing__(self, value: Any) -> int:
        self[value] = len(self.values_by_number)
        self.values_by_number.append(value)
        return self[value]


class _Memory(dict):
    """Caches a function's results."""

    def __init__(self, function):
        self._function = function

    def __missing__(self, key: int) -> int:
        self[key] = result = self._function(key)
        return result
