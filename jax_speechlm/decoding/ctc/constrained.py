"""The best CTC path among those whose tokens an automaton accepts."""

import numpy as np
from jaxtyping import Float

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.decoding.automaton import TokenAutomaton

_REPEATS, _AFTER_BLANK = -1, -2  # where a path comes from, besides numbers of arcs


def best_path_within(
    log_probs_TxV: Float[np.ndarray, "time vocab"], automaton: TokenAutomaton
) -> tuple[tuple[int, ...], float] | None:
    """Finds the most probable path of blanks and tokens whose tokens an automaton accepts: Viterbi over its arcs.

    At a frame a path has emitted the token of an arc, or a blank in a state. Nothing is pruned.

    Args:
      log_probs_TxV: normalised log-probabilities; id 0 is the blank.

    Returns:
      The tokens, and the log-probability of the path in nats; None if no accepted sequence fits into the frames.
    """
    source, token, target = automaton.source, automaton.token, automaton.target
    num_states, num_arcs = len(automaton.final), len(token)
    log_probs_TxV = log_probs_TxV.astype(np.float64)
    entered, first = np.unique(target, return_index=True)  # arcs are by target

    def best_arc(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the highest value among the arcs into each state, and its arc."""
        best, arc = np.full(num_states, -np.inf), np.zeros(num_states, np.int64)
        if num_arcs:
            best[entered] = np.maximum.reduceat(value, first)
            is_best = np.flatnonzero(value == best[target])[::-1]
            arc[target[is_best]] = is_best  # the first of equal ones
        return best, arc

    blank, arcs = np.full(num_states, -np.inf), np.full(num_arcs, -np.inf)
    blank[0] = 0.0
    history = []
    for log_probs in log_probs_TxV:
        best, arc = best_arc(arcs)
        # A token equal to the one before needs a blank between the two, so that the best other one matters too.
        other, other_arc = best_arc(np.where(token == token[arc[target]], -np.inf, arcs))
        is_same = token[arc[source]] == token
        before = np.where(is_same, other[source], best[source])
        before_arc = np.where(is_same, other_arc[source], arc[source])
        choices = np.stack([arcs, blank[source], before])
        choice = choices.argmax(0)
        arc_from = np.choose(choice, [np.full(num_arcs, _REPEATS), np.full(num_arcs, _AFTER_BLANK), before_arc])
        blank_from = np.where(blank >= best, _AFTER_BLANK, arc)
        history.append((arc_from, blank_from))
        blank = np.maximum(blank, best) + log_probs[BLANK]
        arcs = choices.max(0) + log_probs[token]

    best, arc = best_arc(arcs)
    ends = np.where(automaton.final, np.maximum(blank, best), -np.inf)
    state = int(ends.argmax())
    if not np.isfinite(ends[state]):
        return None
    tokens: list[int] = []
    at = _AFTER_BLANK if blank[state] >= best[state] else int(arc[state])
    for arc_from, blank_from in reversed(history):
        if at == _AFTER_BLANK:
            at = int(blank_from[state])
        elif (origin := int(arc_from[at])) != _REPEATS:
            tokens.append(int(token[at]))
            state, at = int(source[at]), origin
    return tuple(reversed(tokens)), float(ends.max())
