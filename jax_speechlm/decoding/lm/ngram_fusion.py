"""N-gram models as scorers of a beam search: at the end of each word, or at every token."""

import array
import bisect
import math
import re
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.decoding.lm.fusion import MEMORY, Numbers, StepScorer
from jax_speechlm.decoding.lm.ngram import END, SPACE, NGram

OOV_PENALTY = (
    -20.0
)  # nats, beside the model's own "<unk>": an unknown word is one of very many. On dev, -10 is too mild
_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")  # how SentencePiece spells what it has no piece for


def ngram_scorer(ngram: NGram, tokenizer: Tokenizer) -> "WordNGram | TokenNGram":
    """The scorer that brings a model and a tokenizer together, from what the model knows.

    A model that knows most of the tokenizer's pieces scores every token; of pieces that hold a space those alone count,
    since a letter may well be a word. One that knows the space as a unit scores a token's characters, any other words.
    """
    pieces = tokenizer.pieces[1:]
    telling = [piece for piece in pieces if SPACE in piece] or pieces
    if 2 * sum(piece in ngram for piece in telling) > len(telling):
        return TokenNGram(ngram, [(piece,) for piece in tokenizer.pieces])
    if SPACE in ngram:
        return TokenNGram(ngram, [tuple(piece) for piece in tokenizer.pieces])
    return WordNGram(ngram, tokenizer.pieces)


class WordNGram:
    """A word model; no lexicon bounds what can be spelled.

    A word is scored when the next one begins, or at the end. One that the model does not know also costs a penalty,
    which is charged as soon as no known word begins as it does: an early warning for the search, not a higher price.

    A prefix is the model's state after its finished words, and the word at its end. What finishing that word costs is
    worked out once for a prefix, whichever token then begins the next; only tokens that go on with a word are looked
    at one by one, and only until the penalty is charged.
    """

    rows_at_once = StepScorer.rows_at_once

    def __init__(self, ngram: NGram, pieces: tuple[str, ...]):
        self.alpha, self.beta = 1.0, 0.0
        self._ngram, self._pieces = ngram, pieces
        self._known = None if ngram.vocabulary is None else sorted(ngram.vocabulary)
        self._starts_word = np.array([piece.startswith(SPACE) for piece in pieces])
        if any(SPACE in piece.lstrip(SPACE) for piece in pieces):
            raise DataError("a word model needs a tokenizer whose pieces hold a space at their beginning alone")
        self._first_penalty = np.array([self._penalty(piece.lstrip(SPACE)) for piece in pieces])
        self._forget()

    def _forget(self) -> None:
        self._contexts = Numbers()  # KenLM's states
        self._states = Numbers()  # of (context, word, whether the penalty is charged)
        self._charged = array.array("b")
        # of finishing a state's word, once it is asked for: log probability, words, context
        self._log_prob, self._words, self._after = array.array("d"), array.array("d"), array.array("q")
        self._penalties: dict[tuple[str, int], float] = {}

    def start(self, prefixes: int, max_tokens: int) -> int:
        if len(self._states) > MEMORY:
            self._forget()
        return self._state(self._contexts[self._ngram.begin()], "", False)

    def score(
        self, states: Int[np.ndarray, " extensions"], tokens: Int[np.ndarray, " extensions"]
    ) -> Float[np.ndarray, " extensions"]:
        starts = self._starts_word[tokens]
        for state in np.unique(states[starts]).tolist():
            self._finish(state)
        log_prob = np.where(starts, np.frombuffer(self._log_prob)[states] + self._first_penalty[tokens], 0.0)
        goes_on = np.flatnonzero(~starts & (np.frombuffer(self._charged, np.int8)[states] == 0))
        log_prob[goes_on] = self._penalties_of(states[goes_on].tolist(), tokens[goes_on].tolist())
        return self.alpha * log_prob + self.beta * np.where(starts, np.frombuffer(self._words)[states], 0.0)

    def advance(
        self, states: Int[np.ndarray, " prefixes"], tokens: Int[np.ndarray, " prefixes"]
    ) -> Int[np.ndarray, " prefixes"]:
        states, grown = states.copy(), np.flatnonzero(tokens)
        pairs = zip(states[grown].tolist(), tokens[grown].tolist(), strict=True)
        states[grown] = [self._extend(state, token) for state, token in pairs]
        return states

    def final(self, states: Int[np.ndarray, " prefixes"]) -> Float[np.ndarray, " prefixes"]:
        found = np.zeros(len(states))
        for place, state in enumerate(states.tolist()):
            self._finish(state)
            context = self._contexts.values_by_number[self._after[state]]
            log_prob = self._log_prob[state] + self._ngram.extend(context, END)[0]
            found[place] = self.alpha * log_prob + self.beta * self._words[state]
        return found

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
            word = _BYTES.sub(_join_bytes, word)
        log_prob, after = self._ngram.extend(self._contexts.values_by_number[context], word)
        self._log_prob[state] = log_prob + (0.0 if charged or word in self._ngram else OOV_PENALTY)
        self._after[state] = self._contexts[after]

    def _penalties_of(self, states: list[int], tokens: list[int]) -> list[float]:
        """What going on by each token costs words that are not charged yet."""
        values, pieces, known = self._states.values_by_number, self._pieces, self._penalties
        found = []
        for state, token in zip(states, tokens, strict=True):
            key = values[state][1], token
            if key not in known:
                known[key] = self._penalty(key[0] + pieces[token])
            found.append(known[key])
        return found

    def _penalty(self, beginning: str) -> float:
        if self._known is None or "<0x" in beginning:
            return 0.0
        place = bisect.bisect_left(self._known, beginning)
        return 0.0 if place < len(self._known) and self._known[place].startswith(beginning) else OOV_PENALTY


class TokenNGram(StepScorer):
    """A model of pieces or characters; each token is one unit, or as many as `units` names for it."""

    def __init__(self, ngram: NGram, units: list[tuple[str, ...]]):
        super().__init__(len(units))
        self._ngram, self._spelling = ngram, units
        self._characters = any(len(each) > 1 for each in units)

    def initial(self) -> Any:
        return self._ngram.begin(), True

    def step(self, value: Any, token: int) -> tuple[float, int, Any]:
        state, first = value
        units, log_prob = self._spelling[token], 0.0
        if first and self._characters and units[0] == SPACE:
            units = units[1:]  # SentencePiece begins a text with a space, a text as such does not
        for unit in units:
            gain, state = self._ngram.extend(state, unit)
            log_prob += gain
        return log_prob, 1, (state, False)

    def end(self, value: Any) -> tuple[float, int]:
        return self._ngram.extend(value[0], END)[0], 0


def _join_bytes(run: re.Match) -> str:
    return bytes.fromhex(run[0].replace("<0x", "").replace(">", "")).decode(errors="replace")
