"""CTC prefix beam search over a batch of utterances in lockstep, with any number of additional scorers.

A prefix's probability is the sum over its alignments, split by whether they end in the blank or in the prefix's last
token (Graves and Jaitly 2014, Hannun et al. 2014). The search runs in log space on the host, with a few array
operations per frame for all rows and prefixes, because a loop over prefixes in Python would dominate the run time.
Scorers get all extensions of a frame in one call.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.decoding.lm.fusion import Scorer

_DEAD, _NO_PARENT = -1, -2  # not numbers of prefixes; they differ, so that an empty slot never matches a root's parent


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A transcript that was found.

    Attributes:
      acoustic: log-probability in nats, summed over the alignments that the beam kept.
      fusion: weighted sum of the scorers in nats.
    """

    tokens: tuple[int, ...]
    acoustic: float
    fusion: float

    @property
    def score(self) -> float:
        """Score that hypotheses are ranked by, in nats."""
        return self.acoustic + self.fusion


@dataclasses.dataclass(frozen=True)
class BeamSettings:
    """Width of the search.

    Attributes:
      size: prefixes kept after a frame.
      token_floor: least log-probability in nats of tokens that extend prefixes; the most probable token always does.
      gap: greatest distance in nats from the best prefix; others are dropped.
    """

    size: int = 16
    token_floor: float = -5.0
    gap: float = 12.0


def prefix_beam_search(
    log_probs_BxTxV: Float[np.ndarray, "batch time vocab"],
    length_B: Int[np.ndarray, " batch"],
    scorers: Sequence[Scorer] = (),
    settings: BeamSettings = BeamSettings(),
    num_best: int = 1,
) -> list[list[Hypothesis]]:
    """Searches for the most probable transcripts of every row.

    Args:
      log_probs_BxTxV: normalised log-probabilities; id 0 is the blank.
      length_B: valid frames; others are ignored.
      scorers: add to the score of a prefix when it grows and at its end.

    Returns:
      Hypotheses by row, best first, at least one. They depend on the row only, not on the batch or the padding. If the
      settings drop nothing, they are exact.
    """
    order = np.argsort(-length_B, kind="stable")  # longest first, so that unfinished rows are always the first ones
    beams = _Beams(log_probs_BxTxV[order], length_B[order], scorers, settings)
    for frame in range(int(length_B.max(initial=0))):
        beams.step(frame)
    hypotheses = beams.finish(num_best)
    return [hypotheses[row] for row in np.argsort(order, kind="stable")]


class _Beams:
    """State of the search: the prefixes of all rows as arrays [batch, beam], sorted by score."""

    def __init__(self, log_probs: np.ndarray, length: np.ndarray, scorers: Sequence[Scorer], settings: BeamSettings):
        batch, num_frames, self.vocab_size = log_probs.shape
        shape = batch, settings.size
        self.log_probs, self.length, self.scorers, self.settings = log_probs, length, scorers, settings
        self.ends_blank, self.ends_token = np.full(shape, -np.inf), np.full(shape, -np.inf)  # log probabilities
        self.ends_blank[:, 0] = 0.0
        self.fusion = np.zeros(shape)
        self.last = np.zeros(shape, np.int64)  # token
        self.node, self.parent = np.full(shape, _DEAD), np.full(shape, _NO_PARENT)
        self.node[:, 0] = np.arange(batch)
        # A prefix's number is the index of its key, parent * vocab_size + token, among the keys; keys of roots are
        # negative. A dropped prefix that returns gets its old number, so that its extensions still merge.
        self.numbers = {-1 - row: row for row in range(batch)}
        self.states = [np.full(shape, scorer.start(batch * settings.size, num_frames), np.int64) for scorer in scorers]
        # The tokens above the floor, by frame and row.
        keep = log_probs >= np.minimum(log_probs.max(-1, initial=-np.inf), settings.token_floor)[..., None]
        keep[..., BLANK] = False
        keep &= (np.arange(num_frames) < length[:, None])[..., None]
        frame, row, self.candidates = np.nonzero(keep.transpose(1, 0, 2))
        counts = np.bincount(frame * batch + row, minlength=num_frames * batch)
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def _extensions(self, frame: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns candidate tokens [rows, candidates] and their log-probabilities, -inf where a row has fewer."""
        start = frame * len(self.length)
        first = self.first[start : start + rows + 1]
        if first[0] == first[-1]:
            return np.zeros((rows, 0), np.int64), np.zeros((rows, 0))
        counts = np.diff(first)
        row = np.repeat(np.arange(rows), counts)
        column = np.arange(first[0], first[-1]) - first[row]
        tokens = np.zeros((rows, counts.max()), np.int64)
        log_probs = np.full(tokens.shape, -np.inf)
        tokens[row, column] = chosen = self.candidates[first[0] : first[-1]]
        log_probs[row, column] = self.log_probs[row, frame, chosen]
        return tokens, log_probs

    def step(self, frame: int) -> None:
        """Processes a frame of all rows that have it."""
        rows, beam = int((self.length > frame).sum()), self.settings.size
        row_index = np.arange(rows)[:, None]  # values[row_index, index] selects by row
        here = self.log_probs[:rows, frame].astype(np.float64)
        ends_blank, ends_token, last = self.ends_blank[:rows], self.ends_token[:rows], self.last[:rows]
        total = np.logaddexp(ends_blank, ends_token)

        # A prefix stays the same with a blank, with its last token repeated, or ...
        stays_blank = total + here[:, BLANK, None]
        stays_token = ends_token + here[row_index, last]
        # ... when another prefix of the beam is extended to it.
        row, child, parent = np.nonzero(self.parent[:rows, :, None] == self.node[:rows, None, :])
        token = last[row, child]
        grown = np.where(token == last[row, parent], ends_blank[row, parent], total[row, parent]) + here[row, token]
        stays_token[row, child] = np.logaddexp(stays_token[row, child], grown)

        scores = np.logaddexp(stays_blank, stays_token) + self.fusion[:rows]
        tokens, log_probs = self._extensions(frame, rows)
        if width := tokens.shape[1]:
            # New prefixes. A token equal to the last one needs a blank between the two.
            before = np.where(last[:, :, None] == tokens[:, None, :], ends_blank[:, :, None], total[:, :, None])
            grows = before + log_probs[:, None, :]
            pair, column = np.nonzero(tokens[row] == token[:, None])
            grows[row[pair], parent[pair], column] = -np.inf  # counted above
            gains, fused = self._fuse(grows, tokens, scores.max(1))
            scores = np.concatenate([scores, fused.reshape(rows, -1)], axis=1)

        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :beam]  # ties go to the first column
        kept = scores[row_index, chosen]
        alive = kept > kept[:, :1] - self.settings.gap
        grew = np.nonzero(alive & (chosen >= beam))
        origin = np.where(alive, chosen, 0)
        if len(grew[0]):
            origin[grew], column = np.divmod(origin[grew] - beam, width)
        self._keep(origin, alive, stays_blank, stays_token)
        if len(grew[0]):  # in most frames no prefix grows
            here = grew[0], origin[grew], column
            self._grow(grew, tokens[grew[0], column], grows[here], gains[here])

    def _fuse(self, grows: np.ndarray, tokens: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scorers' sum for every extension, and its score; -inf for extensions below the gap."""
        scores = grows + self.fusion[: len(grows), :, None]
        best = np.maximum(best, scores.max((1, 2)))
        chosen = np.nonzero(scores > best[:, None, None] - self.settings.gap)
        gain = np.zeros(len(chosen[0]))
        for scorer, state in zip(self.scorers, self.states, strict=True):
            gain += scorer.score(state[chosen[:2]], tokens[chosen[0], chosen[2]])
        gains, fused = np.zeros(grows.shape), np.full(grows.shape, -np.inf)
        gains[chosen], fused[chosen] = gain, scores[chosen] + gain
        return gains, fused

    def _keep(self, origin: np.ndarray, alive: np.ndarray, ends_blank: np.ndarray, ends_token: np.ndarray) -> None:
        """Moves the prefix at index `origin` of a row to every slot; slots that are not alive become empty."""
        rows = len(origin)
        row_index = np.arange(rows)[:, None]
        for values, new, dead in (
            (self.ends_blank, ends_blank, -np.inf),
            (self.ends_token, ends_token, -np.inf),
            (self.node, self.node, _DEAD),
            (self.parent, self.parent, _NO_PARENT),
        ):
            values[:rows] = np.where(alive, new[row_index, origin], dead)
        for values in (self.fusion, self.last, *self.states):
            values[:rows] = values[row_index, origin]

    def _grow(
        self, where: tuple[np.ndarray, np.ndarray], token: np.ndarray, ends: np.ndarray, gain: np.ndarray
    ) -> None:
        """Extends the prefixes in these slots, where `_keep` has put them, by one token."""
        self.ends_blank[where], self.ends_token[where] = -np.inf, ends
        self.fusion[where] += gain
        self.last[where] = token
        self.parent[where] = self.node[where]
        keys = (self.node[where] * self.vocab_size + token).tolist()
        self.node[where] = [self.numbers.setdefault(key, len(self.numbers)) for key in keys]
        tokens = np.zeros(self.node.shape, np.int64)
        tokens[where] = token
        for scorer, state in zip(self.scorers, self.states, strict=True):
            state[:] = scorer.advance(state.reshape(-1), tokens.reshape(-1)).reshape(state.shape)

    def finish(self, num_best: int) -> list[list[Hypothesis]]:
        """Returns the hypotheses by row, best first."""
        acoustic = np.logaddexp(self.ends_blank, self.ends_token)
        alive = self.node != _DEAD
        for scorer, state in zip(self.scorers, self.states, strict=True):
            self.fusion[alive] += scorer.final(state[alive])
        keys = list(self.numbers)
        scores = acoustic + self.fusion
        hypotheses = []
        for row, ranked in enumerate(np.argsort(-scores, axis=1, kind="stable")):
            best = [slot for slot in ranked if alive[row, slot]][:num_best]
            tokens = [self._labels(keys, int(self.node[row, slot])) for slot in best]
            parts = acoustic[row, best].tolist(), self.fusion[row, best].tolist()
            hypotheses.append(list(map(Hypothesis, tokens, *parts)))
        return hypotheses

    def _labels(self, keys: list[int], node: int) -> tuple[int, ...]:
        tokens = []
        while (key := keys[node]) >= 0:
            node, token = divmod(key, self.vocab_size)
            tokens.append(token)
        return tuple(reversed(tokens))
