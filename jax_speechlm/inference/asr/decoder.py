"""Beam search of recognizers, with language models, boosted phrases and rescoring."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Float

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.config import Config
from jax_speechlm.decoding.ctc.boosting import Boost, read_phrases
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, Hypothesis, prefix_beam_search
from jax_speechlm.decoding.lm.fusion import Scorer, StepScorer, unweighted
from jax_speechlm.decoding.lm.neural_fusion import NeuralScorer
from jax_speechlm.decoding.lm.ngram import END, NGram
from jax_speechlm.decoding.lm.ngram_fusion import ngram_scorer
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.ensemble import LanguageEnsemble

_UNTUNED = {"alpha": 0.5, "beta": 0.5, "rescore_alpha": 0.5, "rescore_beta": 0.5}

Posteriors = Float[np.ndarray, "_ vocab"]  # utterances differ in frames
Search = Callable[..., list[list[Hypothesis]]]
"""`(inputs [batch, time, dim], lengths, scorers, settings, num_best) -> hypotheses of each row`, best first."""


class Decoding(Config):
    """Settings of decoding.

    A transcript's score is log P(recognizer) + alpha * log P(lm) + beta * units + boosts, in nats; with `rescore`, the
    best `beam_size` transcripts are re-ranked by this + rescore_alpha * log P(rescore) + rescore_beta * words.

    Attributes:
      decoder: "greedy" takes each frame's most likely token; "beam" searches prefixes. By default beam if a language
        model or a list of phrases is given, else greedy.
      lm: language model for fusion: an n-gram (ARPA, .gz or KenLM's binary), or a text run's folder.
      lm_ensemble: further text runs with the vocabulary of lm; their probabilities and lm's are averaged.
      alpha: weight of lm.
      beta: bonus per unit of lm, a word or a token.
      boost: a file of words and phrases to boost, one per line, optionally followed by a tab and a bonus.
      rescore: language model that re-ranks the best transcripts, with any tokenizer.
      rescore_alpha: weight of rescore.
      rescore_beta: bonus per word.
      beam_size: prefixes that the search keeps.
      ctc_weight: share of the CTC head in the recognizer's log-probability, in the beam search of a run that was
        trained by aed with one; by default that of its training.
      warps: factors of frequency, of which each utterance gets the one whose best path is likeliest (VTLN): 0.9 0.95 1
        1.05 1.1. Of runs that were trained by ctc on the features of Kaldi.
      timestamps: whether a Whisper predicts times in its texts, at which segments then begin and end. Other runs
        have the times of words without it.
      prompt: text that a Whisper reads before each window, such as names that occur, as they are to be written.
      condition_on_previous: whether a Whisper reads the text before each window of a recording too.
    """

    decoder: Literal["greedy", "beam"] | None = None
    lm: Path | None = None
    lm_ensemble: tuple[Path, ...] = ()
    alpha: pydantic.FiniteFloat | None = None
    beta: pydantic.FiniteFloat | None = None
    boost: Path | None = None
    rescore: Path | None = None
    rescore_alpha: pydantic.FiniteFloat | None = None
    rescore_beta: pydantic.FiniteFloat | None = None
    beam_size: Annotated[int, pydantic.Field(ge=1)] = 16
    ctc_weight: Annotated[float, pydantic.Field(ge=0, lt=1)] | None = None
    warps: tuple[Annotated[float, pydantic.Field(ge=0.7, le=1.4)], ...] = ()
    timestamps: bool = False
    prompt: str | None = None
    condition_on_previous: bool = False

    @property
    def is_greedy(self) -> bool:
        return self.decoder == "greedy" or (self.decoder is None and not (self.lm or self.boost or self.rescore))

    @property
    def name(self) -> str:
        """A short name for folders: "greedy", or "beam" and the names of the files that it uses."""
        if self.is_greedy:
            return "greedy" + "-warped" * bool(self.warps)
        helped = [path.stem for path in (self.lm, *self.lm_ensemble, self.boost) if path]
        return "+".join(
            [
                "beam" + "-warped" * bool(self.warps),
                *helped,
                *([f"ranked-by-{self.rescore.stem}"] if self.rescore else []),
            ]
        )

    @property
    def untuned(self) -> tuple[str, ...]:
        """Weights of the language models in use that are not set."""
        wanted = ("alpha", "beta") * bool(self.lm) + ("rescore_alpha", "rescore_beta") * bool(self.rescore)
        return tuple(name for name in wanted if getattr(self, name) is None)

    def with_defaults(self) -> "Decoding":
        """Returns these settings with default weights for the `untuned` ones."""
        return self.replace(**{name: _UNTUNED[name] for name in self.untuned})

    def __str__(self) -> str:
        warped = [f"one of the warps {', '.join(f'{warp:g}' for warp in self.warps)}"] * bool(self.warps)
        if self.is_greedy:
            return " + ".join(["greedy", *warped])
        parts = [f"prefix beam {self.beam_size}", *warped]
        if self.lm:
            models = " and ".join(map(str, (self.lm, *self.lm_ensemble)))
            parts.append(f"{models} (alpha {self.alpha:g}, beta {self.beta:g})")
        if self.boost:
            parts.append(f"words of {self.boost}")
        if self.rescore:
            parts.append(f"ranked by {self.rescore} (alpha {self.rescore_alpha:g}, beta {self.rescore_beta:g})")
        return " + ".join(parts)

    @pydantic.model_validator(mode="after")
    def _greedy_uses_nothing(self):
        if self.decoder == "greedy" and (self.lm or self.boost or self.rescore):
            raise ValueError("greedy decoding uses no language model and no list of words: take decoder beam")
        if self.ctc_weight is not None and self.is_greedy:
            raise ValueError("greedy decoding of a decoder has no use for its CTC head: add decoder beam to ctc_weight")
        if self.lm_ensemble and not self.lm:
            raise ValueError("lm_ensemble adds to the language model that lm names: name one with --lm")
        return self


class Candidate(NamedTuple):
    """A transcript of a search, with score rest + weight * log_prob + bonus * units of one language model."""

    tokens: tuple[int, ...]
    text: str
    rest: float
    log_prob: float
    units: float


class Decoder:
    """Runs a beam search with its language models, by the settings and weights `decoding`.

    The inputs of the search are an array [frames, dim] for each utterance: log-probabilities for CTC.
    """

    def __init__(self, decoding: Decoding, tokenizer: Tokenizer, search: Search = prefix_beam_search):
        """Loads language models and phrases; raises `DataError` or `CheckpointError` if one cannot be read or used."""
        self.decoding = decoding.with_defaults()
        self._tokenizer, self._search = tokenizer, search
        self._lm = _scorer(decoding.lm, decoding.lm_ensemble, tokenizer) if decoding.lm else None
        self._boost = None
        if decoding.boost:
            self._boost = Boost(read_phrases(decoding.boost, tokenizer), tokenizer.pieces)
        self._rescore = _load(decoding.rescore) if decoding.rescore else None
        self._text_scores: dict[str, float] = {}

    def with_weights(self, **weights: float) -> "Decoder":
        """Returns a decoder with other weights that shares the models and their cached scores."""
        other = copy.copy(self)
        other.decoding = self.decoding.replace(**weights)
        return other

    def with_search(self, search: Search) -> "Decoder":
        """Returns a decoder with another search that shares the models and their cached scores."""
        other = copy.copy(self)
        other._search = search
        return other

    def search(self, posteriors: Sequence[Posteriors]) -> list[list[Hypothesis]]:
        """Searches inputs; returns the best `beam_size` hypotheses per utterance, before rescoring."""
        if self._lm is not None:
            self._lm.alpha, self._lm.beta = self.decoding.alpha, self.decoding.beta
        scorers = [scorer for scorer in (self._lm, self._boost) if scorer is not None]
        rows_at_once = min((scorer.rows_at_once for scorer in scorers), default=StepScorer.rows_at_once)
        size = self.decoding.beam_size
        lengths = np.array([len(each) for each in posteriors], np.int64)
        results: list[list[Hypothesis]] = [[]] * len(posteriors)
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), rows_at_once):
            rows = order[first : first + rows_at_once]
            padded = np.zeros((len(rows), lengths[rows[-1]], posteriors[0].shape[1]), np.float32)
            for padded_TxD, row in zip(padded, rows, strict=True):
                padded_TxD[: lengths[row]] = posteriors[row]
            hypotheses = self._search(padded, lengths[rows], scorers, BeamSettings(size), size)
            for row, each in zip(rows, hypotheses, strict=True):
                results[row] = each
        return results

    def fusion_candidates(self, posteriors: Sequence[Posteriors]) -> list[list[Candidate]]:
        """Returns the hypotheses of `search`, best first, with the unweighted scores of `decoding.lm`."""
        hypotheses = self.search(posteriors)
        scores = unweighted(self._lm, [each.tokens for row in hypotheses for each in row])
        scores = zip(*(score.tolist() for score in scores), strict=True)

        def candidate(hypothesis: Hypothesis) -> Candidate:
            log_prob, units = next(scores)
            rest = hypothesis.score - self.decoding.alpha * log_prob - self.decoding.beta * units
            return Candidate(hypothesis.tokens, self._tokenizer.decode(hypothesis.tokens), rest, log_prob, units)

        return [[candidate(each) for each in row] for row in hypotheses]

    def ranking_candidates(self, hypotheses: Sequence[Sequence[Hypothesis]]) -> list[list[Candidate]]:
        """Returns the hypotheses with their scores by `decoding.rescore`."""
        texts = {each.tokens: self._tokenizer.decode(each.tokens) for row in hypotheses for each in row}
        new = list(dict.fromkeys(text for text in texts.values() if text not in self._text_scores))
        self._text_scores.update(zip(new, _score(self._rescore, new), strict=True))

        def candidate(hypothesis: Hypothesis) -> Candidate:
            text = texts[hypothesis.tokens]
            return Candidate(hypothesis.tokens, text, hypothesis.score, self._text_scores[text], len(text.split()))

        return [[candidate(each) for each in row] for row in hypotheses]

    def rank(self, hypotheses: Sequence[Sequence[Hypothesis]]) -> list[list[Candidate]]:
        """Sorts each utterance's hypotheses, best first, after rescoring if `decoding.rescore` is set."""
        if self._rescore is None:
            return [
                [Candidate(each.tokens, self._tokenizer.decode(each.tokens), each.score, 0.0, 0.0) for each in row]
                for row in hypotheses
            ]
        alpha, beta = self.decoding.rescore_alpha, self.decoding.rescore_beta
        return [
            sorted(row, key=lambda each: -(each.rest + alpha * each.log_prob + beta * each.units))
            for row in self.ranking_candidates(hypotheses)
        ]

    def decode(self, posteriors: Sequence[Posteriors]) -> list[str]:
        """Decodes log-probabilities to the text of each utterance."""
        return [row[0].text for row in self.rank(self.search(posteriors))]


def _load(path: Path) -> NGram | LanguageModel:
    return LanguageModel.load(path) if path.is_dir() else NGram(path)


def _scorer(path: Path, ensemble: Sequence[Path], tokenizer: Tokenizer) -> Scorer:
    lm = LanguageEnsemble.load((path, *ensemble)) if ensemble else _load(path)
    if isinstance(lm, NGram):
        return ngram_scorer(lm, tokenizer)
    own = lm.tokenizer
    if own.fingerprint == tokenizer.fingerprint:
        ids = np.arange(tokenizer.vocab_size)
    elif own.kind == tokenizer.kind == "char" and set(tokenizer.pieces) <= set(own.pieces):
        ids = np.array([own.pieces.index(piece) for piece in tokenizer.pieces])
    else:
        raise DataError(
            f"{path} was trained with another tokenizer ({own.kind}, {own.vocab_size} ids) than the recognizer "
            f"({tokenizer.kind}, {tokenizer.vocab_size} ids): train one with the recognizer's (--data.tokenizer), or "
            "name it as --rescore, which takes any"
        )
    return NeuralScorer(lm, ids, lm.vocabulary.boundary)


def _score(model: NGram | LanguageModel, texts: Sequence[str]) -> Sequence[float]:
    if isinstance(model, NGram):
        # An empty transcript is scored as an empty sentence: the end of sentence has a probability too.
        return [model.score(text) if text.strip() else model.extend(model.begin(), END)[0] for text in texts]
    return model.score(texts).tolist()
