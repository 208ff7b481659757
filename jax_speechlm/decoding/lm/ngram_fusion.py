"""N-gram models as scorers of a beam search: at word boundaries, or at every token."""

import array
import bisect
import math
import re
from typing import Any

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.decoding.lm.fusion import MEMORY, Numbers, StepScorer
from jax_speechlm.decoding.lm.ngram import END, SPACE, NGram

OOV_PENALTY = -20.0
"""Nats, in addition to the log-probability of "<unk>", which covers very many words. On dev sets -10 is too small."""

_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")  # SentencePiece's byte fallback


def ngram_scorer(ngram: NGram, tokenizer: Tokenizer) -> "WordNGram | TokenNGram":
    """Selects the scorer for a model and a tokenizer by the vocabulary of the model.

    Returns:
      A scorer of tokens if the model has most of the tokenizer's pieces (of pieces with a space, if there are any, as a
      letter may also be a word); a scorer of characters if the model has the space as a unit; else a scorer of words.
    """
    pieces = tokenizer.pieces[1:]
    distinctive = [piece for piece in pieces if SPACE in piece] or pieces
    if 2 * sum(piece in ngram for piece in distinctive) > len(distinctive):
        return TokenNGram(ngram, [(piece,) for piece in tokenizer.pieces])
    if SPACE in ngram:
        return TokenNGram(ngram, [tuple(piece) for piece in tokenizer.pieces])
    return WordNGram(ngram, tokenizer.pieces)


class WordNGram:
    """Scorer of words with an open vocabulary.

    Words are scored at the next word boundary, or at the end. An out-of-vocabulary word also gets a penalty, which
    applies once a prefix of it matches no vocabulary word; the early penalty guides the search and is not counted
    twice.

    The state of a prefix is the model's state after its complete words, and the incomplete word at its end. The score
    of completing that word is computed once per prefix, whichever token starts the next word. Only tokens that continue
    a word are processed one by one, until the penalty applies.
    """

    rows_at_once = StepScorer.rows_at_once

    def __init__(self, ngram: NGram, pieces: tuple[str, ...]):
        self.alpha, self.beta = 1.0, 0.0
        self._ngram, self._pieces = ngram, pieces
        self._known = None if ngram.vocabulary is None else sorted(ngram.vocabulary)
        self._starts_word = np.array([piece.startswith(SPACE) for piece in pieces])
        if any(SPACE in piece.lstrip(SPACE) for piece in pieces):
            raise DataError("a word model needs a tokenizer whose pieces have a space only at their beginning")
        self._first_penalty = np.array([self._penalty(piece.lstrip(SPACE)) for piece in pieces])
        self._forget()

    def _forget(self) -> None:
        self._contexts = Numbers()  # states of KenLM
        self._states = Numbers()  # by (context, word, whether the penalty was applied)
        self._charged = array.array("b")
        # Of completing a state's word, computed on demand: log-probability, words, context.
        self._log_prob, self._words, self._after = array.array("d"), array.array("d"), array.array("q")
        self._penalties: dict[tuple[str, int], float] = {}

    def start(self, prefixes: int, max_tokens: int) -> int:
        if len(self._states) > MEMORY:
            self._forget()
        return self._state(self._contexts[self._ngram.begin()], "", False)

    def score(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        starts = self._starts_word[tokens]
        for state in np.unique(states[starts]).tolist():
            self._finish(state)
        log_prob = np.where(starts, np.frombuffer(self._log_prob)[states] + self._first_penalty[tokens], 0.0)
        continues = np.flatnonzero(~starts & (np.frombuffer(self._charged, np.int8)[states] == 0))
        log_prob[continues] = self._penalties_of(states[continues].tolist(), tokens[continues].tolist())
        return self.alpha * log_prob + self.beta * np.where(starts, np.frombuffer(self._words)[states], 0.0)

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        states, grown = states.copy(), np.flatnonzero(tokens)
        states[grown] = list(map(self._extend, states[grown].tolist(), tokens[grown].tolist()))
        return states

    def final(self, states: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(states))
        for index, state in enumerate(states.tolist()):
            self._finish(state)
            context = self._contexts.values_by_number[self._after[state]]
            log_prob = self._log_prob[state] + self._ngram.extend(context, END)[0]
            scores[index] = self.alpha * log_prob + self.beta * self._words[state]
        return scores

    def _state(self, context: int, word: str, charged: bool) -> int:
        state = self._states[context, word, charged]
        if state == len(self._charged):
            self._charged.append(charged)
            self._log_prob.append(math.nan)
            self._words.append(bool(word))
            self._after.append(context)
        return state

    def _extend(self, state: int, token: int) -> int:
        piece = self._pieces[token]
        if self._starts_word[token]:
            self._finish(state)
            return self._state(self._after[state], piece.lstrip(SPACE), bool(self._first_penalty[token]))
        context, word, charged = self._states.values_by_number[state]
        return self._state(context, word + piece, charged or bool(self._penalties_of([state], [token])[0]))

    def _finish(self, state: int) -> None:
        if not math.isnan(self._log_prob[state]):
            return
        context, word, charged = self._states.values_by_number[state]
        if not word:
            self._log_prob[state] = 0.0
            return
        if "<0x" in word:
            word = _BYTES.sub(lambda run: bytes.fromhex(re.sub("<0x|>", "", run[0])).decode(errors="replace"), word)
        log_prob, after = self._ngram.extend(self._contexts.values_by_number[context], word)
        self._log_prob[state] = log_prob + (0.0 if charged or word in self._ngram else OOV_PENALTY)
        self._after[state] = self._contexts[after]

    def _penalties_of(self, states: list[int], tokens: list[int]) -> list[float]:
        """Returns the penalty of continuing words, not penalised so far, by a token."""
        values, pieces, known = self._states.values_by_number, self._pieces, self._penalties
        penalties = []
        for state, token in zip(states, tokens, strict=True):
            key = values[state][1], token
            if key not in known:
                known[key] = self._penalty(key[0] + pieces[token])
            penalties.append(known[key])
        return penalties

    def _penalty(self, beginning: str) -> float:
        if self._known is None or "<0x" in beginning:
            return 0.0
        index = bisect.bisect_left(self._known, beginning)
        return 0.0 if index < len(self._known) and self._known[index].startswith(beginning) else OOV_PENALTY


class TokenNGram(StepScorer):
    """Scorer with a model of pieces or characters; `units` lists the units of every token."""

    def __init__(self, ngram: NGram, units: list[tuple[str, ...]]):
        super().__init__(len(units))
        self._ngram, self._token_units = ngram, units
        self._characters = any(len(characters) > 1 for characters in units)

    def initial(self) -> Any:
        return self._ngram.begin(), True

    def step(self, value: Any, token: int) -> tuple[float, int, Any]:
        state, first = value
        units, log_prob = self._token_units[token], 0.0
        if first and self._characters and units[0] == SPACE:
            units = units[1:]  # SentencePiece adds a space at the start of a text
        for unit in units:
            gain, state = self._ngram.extend(state, unit)
            log_prob += gain
        return log_prob, 1, (state, False)

    def end(self, value: Any) -> tuple[float, int]:
        return self._ngram.extend(value[0], END)[0], 0
