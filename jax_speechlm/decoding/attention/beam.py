"""Beam search of an attention decoder over a batch of utterances in lockstep, with CTC and any number of scorers.

A prefix's score is (1 - w) * its log-probability by the decoder + w * that of all transcripts that begin with it by a
CTC head on the same encoder (Watanabe et al. 2017: joint one-pass decoding), and the scorers' sum. The decoder and
CTC run on the device in programs of fixed shapes, for all prefixes of all utterances at once; the bookkeeping is a few
array operations for each token on the host, where language models are, as in the searches of CTC and transducers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.decoding.attention.network import Extensions, State
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, Hypothesis
from jax_speechlm.decoding.lm.fusion import Scorer


@dataclasses.dataclass(frozen=True)
class AttentionHypothesis(Hypothesis):
    """A transcript whose `acoustic` score is of the decoder and CTC.

    Attributes:
      attention: log-probability by the decoder in nats, with the end's.
      ended: whether it ended, and was not cut at the most tokens.
      no_speech: probability that there is no speech; 0 if the model does not predict it.
    """

    attention: float = 0.0
    ended: bool = True
    no_speech: float = 0.0


class Network(NamedTuple):
    """The model, as the search calls it (`network.start` and `network.advance`).

    Attributes:
      start: `(frames, lengths, prefixes of each utterance) -> (state, extensions)` of empty prefixes.
      advance: `(state, origin, tokens) -> (state, extensions)` of longer ones.
      most_tokens: of a text, without its end.
      ctc_weight: share w of CTC in the score.
      first_timestamp: id from which on tokens are times, which the scorers of texts do not get; None without times.
    """

    start: Callable[..., tuple[State, Extensions]]
    advance: Callable[..., tuple[State, Extensions]]
    most_tokens: int
    ctc_weight: float = 0.0
    first_timestamp: int | None = None


def beam_search(
    network: Network,
    frames_BxTxD: Float[np.ndarray, "batch time dim"],
    length_B: Int[np.ndarray, " batch"],
    scorers: Sequence[Scorer] = (),
    settings: BeamSettings = BeamSettings(),  # noqa: B008  frozen
    num_best: int = 1,
) -> list[list[AttentionHypothesis]]:
    """Searches for the transcripts of every row with the best scores.

    A text ends where its score is among the `settings.size` best of a step, and takes no place of the beam. With CTC,
    which gives texts that leave out speech a low score, ended texts are compared by score, and a prefix is dropped once
    as many ended texts are better, because extensions lower a score, bonuses of scorers aside. Without CTC long texts
    would lose to short ones: they are compared by the mean score of a token, the end included, and a row is finished
    once `settings.size` texts have ended.

    Args:
      frames_BxTxD: the encoder's frames.
      length_B: valid frames; others are ignored.
      scorers: add to the score of a prefix when it grows and at its end.
      settings: `token_floor` is not used: CTC may favour tokens that the decoder finds improbable.

    Returns:
      Hypotheses by row, best first, at least one: cut at `most_tokens` if none ended before. They depend on the row
      only, not on the batch or the padding. If the settings drop nothing, they are exact.
    """
    beams = _Beams(network, frames_BxTxD, length_B, scorers, settings)
    while beams.step():
        pass
    return beams.finish(num_best)


class _Ended(NamedTuple):
    """A text that ended, with its score, parts of it, and what it is compared by."""

    score: float
    acoustic: float
    attention: float
    tokens: tuple[int, ...]
    rank: float


class _Beams:
    """State of the search: the prefixes of all rows as flat arrays [batch * size], the best of a row first."""

    def __init__(
        self,
        network: Network,
        frames: np.ndarray,
        length: np.ndarray,
        scorers: Sequence[Scorer],
        settings: BeamSettings,
    ):
        self.network, self.scorers, self.settings, self.batch = network, scorers, settings, len(frames)
        size = settings.size
        self.row = np.repeat(np.arange(self.batch), size)
        slots = len(self.row)
        self.alive = np.arange(slots) % size == 0
        self.attention, self.acoustic, self.fusion = np.zeros(slots), np.zeros(slots), np.zeros(slots)
        self.tokens = np.full((slots, network.most_tokens), PADDING, np.int32)
        self.num_tokens = 0
        self.ended: list[list[_Ended]] = [[] for _ in range(self.batch)]
        self.states = [np.full(slots, scorer.start(slots, network.most_tokens), np.int64) for scorer in scorers]
        state, extensions = network.start(frames, length, size)
        self.no_speech = np.asarray(state.no_speech)
        self._accept(state, extensions)

    def step(self) -> bool:
        """Extends and ends every prefix; returns whether any is left."""
        size, gap = self.settings.size, self.settings.gap
        attention = self.attention[:, None] + self.extensions.attention
        acoustic = self._mixed(attention, self.extensions.ctc)
        scores = np.where(self.alive[:, None], acoustic + self.fusion[:, None], -np.inf)
        if self.num_tokens == self.network.most_tokens:
            self._end(np.full(self.batch, -np.inf))
            return False

        best = scores.reshape(self.batch, -1).max(axis=1)
        slot, column = np.nonzero((scores > best[self.row, None] - gap) & np.isfinite(scores))
        token, row = self.extensions.tokens[slot, column].astype(np.int64), self.row[slot]
        fusion = self.fusion[slot] + self._gain(slot, token)
        total = acoustic[slot, column] + fusion
        order = np.lexsort((-total, row))
        rank = np.arange(len(order)) - np.searchsorted(row[order], row[order])
        kept = order[rank < size]
        least = np.full(self.batch, -np.inf)
        least[row[order[rank == size - 1]]] = total[order[rank == size - 1]]
        self._end(least)
        np.maximum.at(best, row, total)
        if self.network.ctc_weight:
            best = np.maximum(best, [ended[0].score if ended else -np.inf for ended in self.ended])
        kept = kept[(total[kept] > best[row[kept]] - gap) & (total[kept] > self._exceeded()[row[kept]])]
        if not len(kept):
            return False
        place = row[kept] * size + np.arange(len(kept)) - np.searchsorted(row[kept], row[kept])
        here = slot[kept], column[kept]
        self._keep(place, slot[kept], token[kept], attention[here], acoustic[here], fusion[kept])
        return True

    def finish(self, num_best: int) -> list[list[AttentionHypothesis]]:
        """Returns the hypotheses by row, best first."""
        found = []
        for row, ended in enumerate(self.ended):
            texts = [AttentionHypothesis(e.tokens, e.acoustic, e.score - e.acoustic, e.attention) for e in ended]
            if not texts:  # its places are those of the most tokens
                slots = np.flatnonzero(self.alive & (self.row == row))
                cut = (
                    (tuple(map(int, self.tokens[slot])), self.acoustic[slot], self.fusion[slot], self.attention[slot])
                    for slot in slots
                )
                texts = [AttentionHypothesis(tokens, *map(float, parts), ended=False) for tokens, *parts in cut]
            no_speech = float(self.no_speech[row])
            found.append([dataclasses.replace(text, no_speech=no_speech) for text in texts[:num_best]])
        return found

    def _accept(self, state: State, extensions: Extensions) -> None:
        self.state = state
        arrays = map(np.asarray, jax.device_get(extensions))
        self.extensions = Extensions(*(x if x.dtype.kind == "i" else x.astype(np.float64) for x in arrays))

    def _mixed(self, attention: np.ndarray, ctc: np.ndarray) -> np.ndarray:
        weight = self.network.ctc_weight
        return (1 - weight) * attention + weight * ctc

    def _end(self, least: np.ndarray) -> None:
        """Adds the texts that end with the prefixes, of those with scores above the `least` of their row."""
        attention = self.attention + self.extensions.end_attention
        acoustic = self._mixed(attention, self.extensions.end_ctc)
        scores = acoustic + self.fusion
        slots = np.flatnonzero(self.alive & np.isfinite(scores) & (scores > least[self.row] - self.settings.gap))
        for scorer, state in zip(self.scorers, self.states, strict=True):
            scores[slots] += scorer.final(state[slots])
        for slot in slots[scores[slots] > least[self.row[slots]]].tolist():
            tokens, score = tuple(self.tokens[slot, : self.num_tokens].tolist()), float(scores[slot])
            rank = score if self.network.ctc_weight else score / (self.num_tokens + 1)
            text = _Ended(score, float(acoustic[slot]), float(attention[slot]), tokens, rank)
            self.ended[self.row[slot]].append(text)
        for ended in self.ended:
            ended.sort(key=lambda text: -text.rank)
            del ended[self.settings.size :]

    def _exceeded(self) -> np.ndarray:
        """Returns the score that a prefix of each row has to exceed."""
        is_full = [len(ended) == self.settings.size for ended in self.ended]
        worst = [ended[-1].score if self.network.ctc_weight and ended else np.inf for ended in self.ended]
        return np.where(is_full, worst, -np.inf)

    def _spoken(self, token: np.ndarray) -> np.ndarray:
        """Returns tokens with the blank in place of times."""
        first = self.network.first_timestamp
        return token if first is None else np.where(token >= first, PADDING, token)

    def _gain(self, slot: np.ndarray, token: np.ndarray) -> np.ndarray:
        gain, token = np.zeros(len(slot)), self._spoken(token)
        grows = np.flatnonzero(token != PADDING)
        if len(grows):
            for scorer, state in zip(self.scorers, self.states, strict=True):
                gain[grows] += scorer.score(state[slot[grows]], token[grows])
        return gain

    def _keep(self, place: np.ndarray, slot: np.ndarray, token: np.ndarray, *scores: np.ndarray) -> None:
        """Makes prefixes that grew by a token those of these places; others become empty."""
        slots, size = len(self.row), self.settings.size
        origin, tokens = np.arange(slots) // size * size, np.full(slots, PADDING)
        origin[place], tokens[place] = slot, token
        self.alive = np.zeros(slots, bool)
        self.alive[place] = True
        for values, new in zip((self.attention, self.acoustic, self.fusion), scores, strict=True):
            values[:] = 0
            values[place] = new
        self.tokens = self.tokens[origin]
        self.tokens[:, self.num_tokens] = tokens
        self.num_tokens += 1
        spoken = self._spoken(tokens)
        self.states = [
            scorer.advance(state[origin], spoken) for scorer, state in zip(self.scorers, self.states, strict=True)
        ]
        self._accept(*self.network.advance(self.state, origin.astype(np.int32), tokens.astype(np.int32)))
