"""Finite automata: what a constrained decoding may produce."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jax_speechlm.decoding.lm.fusion import StepScorer

_DEAD = -1


class TooManyStatesError(ValueError):
    """An automaton would have more states than allowed."""


class Graph:
    """A finite automaton as it is built: states are numbers, 0 is the start, and arcs have labels, or None.

    Attributes:
      arcs: by state, pairs of a label and the next state; label None reads nothing.
      final: states in which a sequence may end.
    """

    def __init__(self, max_states: int):
        self.arcs: list[list[tuple[Hashable, int]]] = []
        self.final: set[int] = set()
        self._max_states = max_states
        self.add_state()

    def add_state(self) -> int:
        """Returns a new state. Raises `TooManyStatesError` beyond the limit."""
        if len(self.arcs) == self._max_states:
            raise TooManyStatesError(f"more than {self._max_states:,} states")
        self.arcs.append([])
        return len(self.arcs) - 1

    def add_arc(self, source: int, label: Hashable, target: int) -> None:
        """Adds an arc; with label None it reads nothing."""
        self.arcs[source].append((label, target))

    def add_path(self, source: int, labels: Iterable[Hashable]) -> int:
        """Adds a path of new states; returns the last one."""
        for label in labels:
            target = self.add_state()
            self.add_arc(source, label, target)
            source = target
        return source

    def determinized(self) -> "Graph":
        """Returns an equal automaton whose states have one arc per label, all of them on a path to a final state.

        Subset construction (Rabin and Scott 1959).
        """
        result, numbers = Graph(self._max_states), {(start := self._closure([0])): 0}
        waiting = [start]
        while waiting:
            subset = waiting.pop()
            source, targets = numbers[subset], {}
            if not self.final.isdisjoint(subset):
                result.final.add(source)
            for state in subset:
                for label, target in self.arcs[state]:
                    if label is not None:
                        targets.setdefault(label, []).append(target)
            for label in sorted(targets):
                after = self._closure(targets[label])
                if after not in numbers:
                    numbers[after] = result.add_state()
                    waiting.append(after)
                result.add_arc(source, label, numbers[after])
        return result._trimmed()

    def _closure(self, states: Sequence[int]) -> frozenset[int]:
        """Returns states and all that follow them without reading a label."""
        seen, waiting = set(states), list(states)
        while waiting:
            for label, target in self.arcs[waiting.pop()]:
                if label is None and target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return frozenset(seen)

    def _trimmed(self) -> "Graph":
        before: list[list[int]] = [[] for _ in self.arcs]
        for source, arcs in enumerate(self.arcs):
            for _, target in arcs:
                before[target].append(source)
        alive, waiting = set(self.final), list(self.final)
        while waiting:
            for source in before[waiting.pop()]:
                if source not in alive:
                    alive.add(source)
                    waiting.append(source)
        return self._renumbered({state: state for state in alive | {0}})

    def minimized(self) -> "Graph":
        """Returns the smallest equal automaton of a deterministic one without cycles.

        States with equal futures merge.
        """
        classes: dict[Any, int] = {}
        merged: dict[int, int] = {}
        for state in reversed(self.in_order()):
            future = (state in self.final, tuple((label, merged[target]) for label, target in self.arcs[state]))
            merged[state] = classes.setdefault(future, state)
        return self._renumbered(merged)

    def in_order(self) -> list[int]:
        """Returns the states of an automaton without cycles such that arcs lead to later ones."""
        ends: list[int] = []
        seen, stack = {0}, [(0, iter(self.arcs[0]))]
        while stack:
            target = next((target for _, target in stack[-1][1] if target not in seen), None)
            if target is None:
                ends.append(stack.pop()[0])
            else:
                seen.add(target)
                stack.append((target, iter(self.arcs[target])))
        return ends[::-1]

    def _renumbered(self, merged: dict[int, int]) -> "Graph":
        """Returns the automaton with states replaced, without those that are not mentioned."""
        kept = sorted(set(merged.values()) - {merged[0]})
        numbers = {state: number for number, state in enumerate((merged[0], *kept))}
        result = Graph(self._max_states)
        for _ in kept:
            result.add_state()
        for state, number in numbers.items():
            arcs = [(label, numbers[merged[target]]) for label, target in self.arcs[state] if target in merged]
            result.arcs[number] = arcs
        result.final = {numbers[merged[state]] for state in self.final if state in merged}
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton over the tokens of a recognizer; state 0 is the start.

    Attributes:
      source, token, target: of each arc, by ascending target.
      final: by state, whether a transcript may end there.
    """

    source: Int[np.ndarray, " arcs"]
    token: Int[np.ndarray, " arcs"]
    target: Int[np.ndarray, " arcs"]
    final: Bool[np.ndarray, " states"]

    @classmethod
    def of(cls, graph: Graph) -> "TokenAutomaton":
        """Returns the automaton of a graph whose labels are tokens."""
        graph = graph.determinized()
        arcs = [(target, source, token) for source, each in enumerate(graph.arcs) for token, target in each]
        target, source, token = np.array(sorted(arcs), np.int64).reshape(-1, 3).T
        return cls(source, token, target, np.isin(np.arange(len(graph.arcs)), list(graph.final)))

    @classmethod
    def of_words(cls, words: Graph, encode: Callable[[str, bool], Sequence[int]], max_states: int) -> "TokenAutomaton":
        """Returns the automaton of a graph whose labels are words.

        Args:
          words: its arcs all have labels.
          encode: `(word, is_first) -> tokens` of a word, with those that separate it from the word before.
        """
        # Words have other tokens at the start, so that state 0 is not entered again.
        tokens, numbers = Graph(max_states), {0: 0}
        for state in range(1, len(words.arcs)):
            numbers[state] = tokens.add_state()
        again = tokens.add_state() if any(target == 0 for arcs in words.arcs for _, target in arcs) else None
        for source, arcs in enumerate(words.arcs):
            starts = [(numbers[source], source == 0)] + ([(again, False)] if source == 0 and again is not None else [])
            for start, is_first in starts:
                for word, target in arcs:
                    end = tokens.add_path(start, encode(word, is_first))
                    tokens.add_arc(end, None, again if target == 0 else numbers[target])
        tokens.final = {numbers[state] for state in words.final}
        if again is not None and 0 in words.final:
            tokens.final.add(again)
        return cls.of(tokens)

    @functools.cached_property
    def arcs(self) -> dict[tuple[int, int], int]:
        """Returns the next state by state and token."""
        columns = (self.source.tolist(), self.token.tolist(), self.target.tolist())
        return {(source, token): target for source, token, target in zip(*columns, strict=True)}


class Accepted(NamedTuple):
    """The best transcript that an automaton accepts.

    Attributes:
      tokens: None if none was found.
      margin: its log-probability less that of free recognition, in nats per token; at most about 0.
    """

    tokens: tuple[int, ...] | None
    margin: float

    @classmethod
    def of(cls, tokens: tuple[int, ...], log_prob: float, free_log_prob: float) -> "Accepted":
        """Returns a transcript with its margin."""
        return cls(tokens, (log_prob - free_log_prob) / max(1, len(tokens)))


NOT_FOUND = Accepted(None, -np.inf)


class AutomatonScorer(StepScorer):
    """Holds a beam search to an automaton: anything else has the score -inf."""

    def __init__(self, automaton: TokenAutomaton, vocab_size: int):
        self._automaton = automaton
        super().__init__(vocab_size)

    def initial(self) -> int:
        return 0

    def step(self, value: int, token: int) -> tuple[float, int, int]:
        target = self._automaton.arcs.get((value, token), _DEAD)
        return (-np.inf if target == _DEAD else 0.0), 0, target

    def end(self, value: int) -> tuple[float, int]:
        is_final = value != _DEAD and self._automaton.final[value]
        return (0.0 if is_final else -np.inf), 0
