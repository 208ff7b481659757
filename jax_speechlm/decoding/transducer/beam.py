"""Beam search of transducers over a batch of utterances in lockstep, with any number of additional scorers.

The search moves over frames. At a frame it extends the prefixes that have reached it, as often as a frame may emit
tokens (time-synchronous decoding, Saon et al. 2020); in TDT others wait at later frames. Prefixes that are equal at the
same frame merge, so that a probability is the sum over the alignments that the beam kept. The network runs on the
device, for all prefixes of all rows at once; the bookkeeping is a few array operations on the host.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, Hypothesis
from jax_speechlm.decoding.lm.fusion import Scorer
from jax_speechlm.decoding.transducer.greedy import MAX_SYMBOLS

_NEVER = -1  # frame of empty slots
_EMPTY_HASH = 0x243F6A8885A308D3  # of the empty prefix; unlike a small number, no token turns it into 0


@dataclasses.dataclass(frozen=True)
class TimedHypothesis(Hypothesis):
    """A transcript with the alignment that contributed most to it when prefixes merged.

    Attributes:
      frames: frame of each token.
      durations: frames from each token to the next symbol; 0 in RNN-T.
      log_probs: log-probability of each token, in TDT with its duration, in nats.
    """

    frames: tuple[int, ...] = ()
    durations: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()


class Network(NamedTuple):
    """The network of a transducer, as the search calls it.

    Attributes:
      start: `number of prefixes -> states` of empty prefixes.
      advance: `(states, origin [prefixes], tokens [prefixes], frames [prefixes, dim]) -> (states, log-probabilities of
        tokens [prefixes, vocab], of durations [prefixes, durations])`. Moves the state of prefix `origin` to each
        place, extends it by a token unless that is the blank, and evaluates the joint network there.
      durations: those of TDT; () for RNN-T.
    """

    start: Callable[[int], Any]
    advance: Callable[..., tuple[Any, np.ndarray, np.ndarray]]
    durations: tuple[int, ...] = ()


def beam_search(
    network: Network,
    encoder_BxTxJ: Float[np.ndarray, "batch time dim"],
    length_B: Int[np.ndarray, " batch"],
    scorers: Sequence[Scorer] = (),
    settings: BeamSettings = BeamSettings(),  # noqa: B008  frozen
    num_best: int = 1,
    max_symbols: int = MAX_SYMBOLS,
) -> list[list[TimedHypothesis]]:
    """Searches for the most probable transcripts of every row.

    Args:
      encoder_BxTxJ: encoder outputs, projected for the joint network.
      length_B: valid frames; others are ignored.
      scorers: add to the score of a prefix when it grows and at its end.
      settings: as for CTC; a prefix grows by at most `settings.size` different tokens at a time.
      max_symbols: most tokens of duration 0 at a frame.

    Returns:
      Hypotheses by row, best first, at least one. They depend on the row only, not on the batch or the padding. If the
      settings drop nothing, they are exact.
    """
    beams = _Beams(network, encoder_BxTxJ, length_B, scorers, settings)
    for frame in range(int(length_B.max(initial=0))):
        for symbols in range(max_symbols + 1):
            if not beams.step(frame, may_stay=symbols < max_symbols):
                break
    return beams.finish(num_best)


class _Candidates(NamedTuple):
    """Prefixes that a step may keep, of all rows, one after the other.

    Attributes:
      slot: place in [batch, beam], flat, of the prefix that it comes from.
      token: token that it grows by, or the blank.
      frame: frame that it has reached.
      score: acoustic log-probability.
      fusion: weighted sum of the scorers.
      duration, log_prob: of the token's emission.
    """

    slot: np.ndarray
    token: np.ndarray
    frame: np.ndarray
    score: np.ndarray
    fusion: np.ndarray
    duration: np.ndarray
    log_prob: np.ndarray

    def select(self, index: np.ndarray) -> "_Candidates":
        return _Candidates(*(array[index] for array in self))


class _Beams:
    """State of the search: the prefixes of all rows as flat arrays [batch * beam]."""

    def __init__(
        self,
        network: Network,
        encoder: np.ndarray,
        length: np.ndarray,
        scorers: Sequence[Scorer],
        settings: BeamSettings,
    ):
        self.batch, self.num_frames = encoder.shape[:2]
        self.network, self.encoder, self.length, self.scorers, self.settings = (
            network,
            encoder,
            length,
            scorers,
            settings,
        )
        slots = self.batch * settings.size
        self.row = np.repeat(np.arange(self.batch), settings.size)
        self.frame = np.full(slots, _NEVER)
        self.frame[:: settings.size] = 0
        self.score, self.fusion = np.where(self.frame == 0, 0.0, -np.inf), np.zeros(slots)
        self.hash = np.full(slots, _EMPTY_HASH, np.uint64)  # of the prefix
        self.last = np.full(slots, -1)  # emission in `trace`
        self.trace: list[tuple[int, int, int, int, float]] = []  # emission before, token, frame, duration, log_prob
        self.network_states = network.start(slots)
        self.moved = np.arange(slots), np.full(slots, BLANK)  # what the network has not been told yet
        # Scorers see a token for every prefix at most at each frame and symbol.
        states = [scorer.start(slots, max(1, self.num_frames)) for scorer in scorers]
        self.states = [np.full(slots, state, np.int64) for state in states]

    def step(self, frame: int, may_stay: bool) -> bool:
        """Extends the prefixes at a frame; returns whether there were any."""
        active = np.flatnonzero((self.frame == frame) & (frame < self.length[self.row]))
        if not len(active):
            return False
        frames = self.encoder[:, min(frame, self.num_frames - 1)][self.row]
        self.network_states, log_token, log_duration = self.network.advance(self.network_states, *self.moved, frames)
        log_token, log_duration = (np.asarray(x)[active].astype(np.float64) for x in (log_token, log_duration))
        waiting = np.setdiff1d(np.flatnonzero(self.frame != _NEVER), active)
        parts = [self._unchanged(waiting), self._blanks(active, frame, log_token, log_duration)]
        parts.append(self._tokens(active, frame, log_token, log_duration, may_stay))
        every = _Candidates(*map(np.concatenate, zip(*parts, strict=True)))
        self._keep(self._merge(self._fuse(every)))
        return True

    def _unchanged(self, slots: np.ndarray) -> _Candidates:
        nothing = np.zeros(len(slots))
        blank = np.full(len(slots), BLANK)
        return _Candidates(
            slots, blank, self.frame[slots], self.score[slots], self.fusion[slots], nothing.astype(int), nothing
        )

    def _blanks(self, active: np.ndarray, frame: int, log_token: np.ndarray, log_duration: np.ndarray) -> _Candidates:
        """Returns the prefixes moved on by a blank, as far as the end of the utterance."""
        moves = self.network.durations or (1,)
        durations = np.tile([d for d in moves if d > 0], (len(active), 1))
        log_prob = np.broadcast_to(log_token[:, BLANK, None], durations.shape)
        if self.network.durations:
            log_prob = log_prob + log_duration[:, [i for i, d in enumerate(moves) if d > 0]]
        slot = np.broadcast_to(active[:, None], durations.shape)
        inside = frame + durations <= self.length[self.row[slot]]
        slot, duration, log_prob = slot[inside], durations[inside], log_prob[inside]
        score = self.score[slot] + log_prob
        return _Candidates(
            slot, np.full(len(slot), BLANK), frame + duration, score, self.fusion[slot], duration, log_prob
        )

    def _tokens(
        self, active: np.ndarray, frame: int, log_token: np.ndarray, log_duration: np.ndarray, may_stay: bool
    ) -> _Candidates:
        """Returns the prefixes that grow by a token, those of duration 0 if the frame `may_stay`."""
        log_token = log_token.copy()
        log_token[:, BLANK] = -np.inf
        width = min(self.settings.size, log_token.shape[1] - 1)
        token = np.argsort(-log_token, axis=1, kind="stable")[:, :width]
        log_prob = np.take_along_axis(log_token, token, axis=1)[..., None]
        likely = log_prob >= np.minimum(log_prob[:, :1], self.settings.token_floor)
        moves = np.array(self.network.durations or (0,))
        if self.network.durations:
            log_prob = log_prob + log_duration[:, None, :]
        # A blank follows, so that a token ends before the utterance does.
        inside = frame + moves < self.length[self.row[active], None]
        keep = likely & ((moves > 0) | may_stay) & inside[:, None, :]
        index, column, move = np.nonzero(keep)
        slot, token, log_prob, duration = active[index], token[index, column], log_prob[keep], moves[move]
        score = self.score[slot] + log_prob
        return _Candidates(slot, token, frame + duration, score, self.fusion[slot], duration, log_prob)

    def _fuse(self, candidates: _Candidates) -> _Candidates:
        """Adds the scorers to prefixes that grow, and drops candidates below the gap."""
        total = candidates.score + candidates.fusion
        best = np.full(self.batch, -np.inf)
        np.maximum.at(best, self.row[candidates.slot], total)
        candidates = candidates.select(total > best[self.row[candidates.slot]] - self.settings.gap)
        grows = np.flatnonzero(candidates.token != BLANK)
        if len(grows):
            slot, token = candidates.slot[grows], candidates.token[grows]
            for scorer, state in zip(self.scorers, self.states, strict=True):
                candidates.fusion[grows] += scorer.score(state[slot], token)
        return candidates

    def _hash_of(self, slot: np.ndarray, token: np.ndarray) -> np.ndarray:
        grown = (self.hash[slot] ^ token.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        grown ^= grown >> np.uint64(29)
        grown = grown * np.uint64(0xBF58476D1CE4E5B9)
        return np.where(token == BLANK, self.hash[slot], grown ^ (grown >> np.uint64(32)))

    def _merge(self, candidates: _Candidates) -> tuple[_Candidates, np.ndarray]:
        """Adds up equal prefixes at the same frame, in the place of the most probable one; returns them with hashes."""
        row, own = self.row[candidates.slot], self._hash_of(candidates.slot, candidates.token)
        order = np.lexsort((-candidates.score, candidates.frame, own, row))
        keys = np.stack([row[order].astype(np.uint64), own[order], candidates.frame[order].astype(np.uint64)])
        first = np.flatnonzero(np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)]))
        merged = candidates.select(order[first])
        score = np.logaddexp.reduceat(candidates.score[order], first)
        return merged._replace(score=score), own[order[first]]

    def _keep(self, merged: tuple[_Candidates, np.ndarray]) -> None:
        """Makes the best candidates of each row the prefixes of its beam."""
        candidates, hashes = merged
        row, size = self.row[candidates.slot], self.settings.size
        total = candidates.score + candidates.fusion
        order = np.lexsort((-total, row))
        rank = np.arange(len(order)) - np.searchsorted(row[order], row[order])
        best = total[order][np.searchsorted(row[order], row[order])]
        kept = order[(rank < size) & (total[order] > best - self.settings.gap)]
        place = row[kept] * size + (np.arange(len(kept)) - np.searchsorted(row[kept], row[kept]))

        slots = self.batch * size
        origin, token = np.arange(slots) // size * size, np.full(slots, BLANK)
        origin[place], token[place] = candidates.slot[kept], candidates.token[kept]
        last = self.last[origin]
        for where, index in zip(place, kept, strict=True):
            if candidates.token[index] != BLANK:
                emission = candidates.frame[index] - candidates.duration[index], candidates.duration[index]
                self.trace.append((last[where], candidates.token[index], *emission, candidates.log_prob[index]))
                last[where] = len(self.trace) - 1
        self.last = last
        self.frame, self.score = np.full(slots, _NEVER), np.full(slots, -np.inf)
        self.fusion, own = np.zeros(slots), np.ones(slots, np.uint64)
        self.frame[place], self.score[place] = candidates.frame[kept], candidates.score[kept]
        self.fusion[place], own[place] = candidates.fusion[kept], hashes[kept]
        self.hash, self.moved = own, (origin, token)
        for number, scorer in enumerate(self.scorers):
            self.states[number] = scorer.advance(self.states[number][origin], token)

    def finish(self, num_best: int) -> list[list[TimedHypothesis]]:
        """Returns the hypotheses by row, best first."""
        alive = self.frame != _NEVER
        for scorer, state in zip(self.scorers, self.states, strict=True):
            self.fusion[alive] += scorer.final(state[alive])
        total = np.where(alive, self.score + self.fusion, -np.inf).reshape(self.batch, -1)
        hypotheses = []
        for row, ranked in enumerate(np.argsort(-total, axis=1, kind="stable")):
            slots = [slot for slot in row * self.settings.size + ranked if alive[slot]][:num_best]
            hypotheses.append([self._hypothesis(int(slot)) for slot in slots])
        return hypotheses

    def _hypothesis(self, slot: int) -> TimedHypothesis:
        emissions, last = [], int(self.last[slot])
        while last >= 0:
            last, *emission = self.trace[last]
            emissions.append(emission)
        columns = [tuple(column) for column in zip(*reversed(emissions), strict=True)] or [(), (), (), ()]
        tokens, frames, durations, log_probs = columns
        score = float(self.score[slot]), float(self.fusion[slot])
        return TimedHypothesis(
            tuple(map(int, tokens)), *score, tuple(map(int, frames)), tuple(map(int, durations)),
            tuple(map(float, log_probs)),
        )  # fmt: skip
