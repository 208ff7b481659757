"""What adds to the score of a transcript while a beam search spells it: language models, lists of words."""

import abc
import array
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

MEMORY = 1_000_000  # remembered steps, about 150 bytes each
_PREFIXES_A_ROW = 16  # as a beam has


@runtime_checkable
class Scorer(Protocol):
    """A score of token sequences, in nats, that grows with the sequence.

    A state is a number that stands for a prefix. States belong to one search: `start` may forget those of the search
    before. Token 0, the blank, leaves a prefix as it is.

    Attributes:
      alpha: weight of its log probabilities.
      beta: bonus for each unit that it counts, words or tokens.
      rows_at_once: utterances that are best searched in lockstep.
    """

    alpha: float
    beta: float
    rows_at_once: int

    def start(self, prefixes: int, max_tokens: int) -> int:
        """The state of the empty prefix. A search begins, which keeps `prefixes` at a time, of up to `max_tokens`."""

    def score(
        self, states: Int[np.ndarray, " extensions"], tokens: Int[np.ndarray, " extensions"]
    ) -> Float[np.ndarray, " extensions"]:
        """What extending each prefix by a token (never the blank) adds."""

    def advance(
        self, states: Int[np.ndarray, " prefixes"], tokens: Int[np.ndarray, " prefixes"]
    ) -> Int[np.ndarray, " prefixes"]:
        """The states of all prefixes that a search keeps, each extended by a token or, for 0, as it was.

        States that are not returned will not be asked for again.
        """

    def final(self, states: Int[np.ndarray, " prefixes"]) -> Float[np.ndarray, " prefixes"]:
        """What the end of the transcript adds."""


def unweighted(
    scorer: Scorer, sequences: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, " sequences"], Float[np.ndarray, " sequences"]]:
    """The log probability and the number of units that a scorer sees in each sequence of tokens, its end included."""
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
            going = np.flatnonzero(column)
            for (scorer.alpha, scorer.beta), total in sums.items():
                total[first + going] += scorer.score(states[going], column[going])
            states = scorer.advance(states, column)
        for (scorer.alpha, scorer.beta), total in sums.items():
            total[first : first + len(part)] += scorer.final(states)
    scorer.alpha, scorer.beta = before
    return tuple(sums.values())


class StepScorer(abc.ABC):
    """A scorer written for one prefix at a time; a subclass gives `initial`, `step` and `end`.

    Prefixes between which the subclass makes no difference, since their values are equal, share one state, and no step
    is worked out twice.
    """

    alpha = 1.0
    beta = 0.0
    rows_at_once = 32  # more would save nothing

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size
        self._forget()

    @abc.abstractmethod
    def initial(self) -> Any:
        """The hashable value of the empty prefix."""

    @abc.abstractmethod
    def step(self, value: Any, token: int) -> tuple[float, int, Any]:
        """Log probability, units, and value of the prefix after one more token."""

    @abc.abstractmethod
    def end(self, value: Any) -> tuple[float, int]:
        """Log probability and units of the transcript's end."""

    def start(self, prefixes: int, max_tokens: int) -> int:
        if len(self._steps) > MEMORY:
            self._forget()
        return self._states[self.initial()]

    def score(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        steps = self._steps
        numbers = [steps[key] for key in (states * self._vocab_size + tokens).tolist()]
        return self.alpha * np.frombuffer(self._log_prob)[numbers] + self.beta * np.frombuffer(self._units)[numbers]

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        states, grown = states.copy(), np.flatnonzero(tokens)
        steps, after = self._steps, self._after
        keys = (states[grown] * self._vocab_size + tokens[grown]).tolist()
        states[grown] = [after[steps[key]] for key in keys]
        return states

    def final(self, states: np.ndarray) -> np.ndarray:
        values = self._states.values_by_number
        ends = np.array([self.end(values[state]) for state in states.tolist()], np.float64).reshape(-1, 2)
        return ends @ np.array([self.alpha, self.beta])

    def _forget(self) -> None:
        self._states = Numbers()
        self._steps = _Memory(self._work_out)
        # of each step that was worked out
        self._log_prob, self._units, self._after = array.array("d"), array.array("d"), array.array("q")

    def _work_out(self, key: int) -> int:
        state, token = divmod(key, self._vocab_size)
        log_prob, units, value = self.step(self._states.values_by_number[state], token)
        self._log_prob.append(log_prob)
        self._units.append(units)
        self._after.append(self._states[value])
        return len(self._after) - 1


class Numbers(dict):
    """Numbers values as they are first asked for."""

    def __init__(self):
        self.values_by_number = []

    def __missing__(self, value: Any) -> int:
        self[value] = number = len(self.values_by_number)
        self.values_by_number.append(value)
        return number


class _Memory(dict):
    """Remembers a function's results."""

    def __init__(self, function):
        self._function = function

    def __missing__(self, key: int) -> int:
        self[key] = result = self._function(key)
        return result
