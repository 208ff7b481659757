"""Tunes the weights of language models on a dev split.

Searching takes seconds to minutes, ranking the candidates of a search no time. So a few searches with different weights
fill a pool of candidates per utterance; the weights that minimise the errors of the pool's best candidates are searched
with next, and add to the pool, until the weights repeat (the outer loop of Och 2003, around a grid search).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jax_speechlm.evaluation import wer
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces
from jax_speechlm.inference.asr.decoder import Candidate, Decoder, Posteriors

Weights = tuple[float, float]
"""Weight of a model's log-probabilities, and bonus per unit."""

_GRID = [
    (alpha, beta)
    for alpha in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)
    for beta in (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
]
_FAR_APART = [(0.2, 0.0), (1.0, 2.0), (1.7, 4.0)]
_MOST_SEARCHES = 9


def tune_weights(
    decoder: Decoder, posteriors: Mapping[int, Posteriors], references: Sequence[str], normalizer_name: NormalizerName
) -> Decoder:
    """Returns the decoder with the weights that make the fewest errors: first in the search, then in rescoring.

    The unit of errors is the word, or the character if the references are written without spaces; ties are broken by
    the errors in the other unit, then by the distance from the initial weights.

    Args:
      decoder: has the initial weights; weights that it does not use stay unchanged.
      posteriors: log-probabilities of utterances, by row of `references`.
    """
    errors = _Errors([references[row] for row in posteriors], normalizer_name)
    of_utterances = list(posteriors.values())
    if decoder.decoding.lm:
        decoder = _tune_search(decoder, of_utterances, errors)
    if decoder.decoding.rescore:
        pool = _Pool(errors)
        pool.add(decoder.ranking_candidates(decoder.search(of_utterances)))
        before = decoder.decoding.rescore_alpha, decoder.decoding.rescore_beta
        alpha, beta = _fewest_errors({weights: pool.cost(weights) for weights in [before, *_GRID]}, before)
        decoder = decoder.with_weights(rescore_alpha=alpha, rescore_beta=beta)
    return decoder


def _tune_search(decoder: Decoder, posteriors: Sequence[Posteriors], errors: "_Errors") -> Decoder:
    before = decoder.decoding.alpha, decoder.decoding.beta
    pool, known = _Pool(errors), {}
    trials = list(dict.fromkeys([before, *_FAR_APART]))
    while len(known) < _MOST_SEARCHES:
        if len(known) < len(trials):
            weights = trials[len(known)]
        else:
            weights = _fewest_errors({weights: pool.cost(weights) for weights in _GRID}, before)
        if weights in known:
            break
        alpha, beta = weights
        candidates = decoder.with_weights(alpha=alpha, beta=beta).fusion_candidates(posteriors)
        known[weights] = tuple(
            errors.of([(row, ranked[0].text) for row, ranked in enumerate(candidates)]).sum(0).tolist()
        )
        pool.add(candidates)
    alpha, beta = _fewest_errors(known, before)
    return decoder.with_weights(alpha=alpha, beta=beta)


def _fewest_errors(costs: Mapping[Weights, tuple[int, int]], before: Weights) -> Weights:
    def distance(weights):
        return sum(abs(a - b) for a, b in zip(weights, before, strict=True))

    return min(costs, key=lambda weights: (*costs[weights], distance(weights)))


class _Errors:
    """Counts errors of texts against the references of their utterances; caches the counts."""

    def __init__(self, references: Sequence[str], normalizer_name: NormalizerName):
        self._clean = normalizer(normalizer_name)
        self._references = [self._clean(text) for text in references]
        self._by_character = written_without_spaces(self._references)
        if self._by_character:  # as in the report
            self._references = [text.replace(" ", "") for text in self._references]
        self._known: dict[tuple[int, str], tuple[int, int]] = {}

    def of(self, texts: Sequence[tuple[int, str]]) -> Int[np.ndarray, "texts 2"]:
        """Returns the errors of (utterance, text) pairs: in the deciding unit, and in the unit that breaks ties."""
        new = list(dict.fromkeys(each for each in texts if each not in self._known))
        references = [self._references[utterance] for utterance, _ in new]
        hypotheses = [self._clean(text) for _, text in new]
        if self._by_character:
            hypotheses = [text.replace(" ", "") for text in hypotheses]
        units = ("character", "word") if self._by_character else ("word", "character")
        counts = [wer.count(wer.align(references, hypotheses, unit))[:, :3].sum(1).tolist() for unit in units]
        self._known.update(zip(new, zip(*counts, strict=True), strict=True))
        return np.array([self._known[each] for each in texts], np.int64).reshape(-1, 2)


class _Pool:
    """All candidates of the searches, by utterance."""

    def __init__(self, errors: _Errors):
        self._errors = errors
        self._candidates: list[dict[tuple[int, ...], Candidate]] = []

    def add(self, candidates: Sequence[Sequence[Candidate]]) -> None:
        self._candidates = self._candidates or [{} for _ in candidates]
        for known, of_utterance in zip(self._candidates, candidates, strict=True):
            for candidate in of_utterance:  # keep the search with most alignments of a transcript
                if candidate.tokens not in known or known[candidate.tokens].rest < candidate.rest:
                    known[candidate.tokens] = candidate
        width = max(map(len, self._candidates), default=0)
        self._parts = np.zeros((3, len(self._candidates), width))
        self._parts[0] = -np.inf
        self._counts = np.zeros((len(self._candidates), width, 2), np.int64)
        for utterance, known in enumerate(self._candidates):
            rows = list(known.values())
            self._parts[:, utterance, : len(rows)] = np.array([(c.rest, c.log_prob, c.units) for c in rows]).T
            self._counts[utterance, : len(rows)] = self._errors.of([(utterance, c.text) for c in rows])

    def cost(self, weights: Weights) -> tuple[int, int]:
        """Returns the errors of the candidates that these weights rank first."""
        rest, log_prob, units = self._parts
        best: Float[np.ndarray, " utterances"] = (rest + weights[0] * log_prob + weights[1] * units).argmax(1)
        return tuple(self._counts[np.arange(len(best)), best].sum(0).tolist())
