"""N-gram models as scorers of a beam search: at the end of each word, or at every token."""

import bisect
import re
from typing import Any

from data_pipelines.tokenizers import Tokenizer
from jax_speechlm.decoding.fusion import StepScorer
from jax_speechlm.decoding.ngram import END, SPACE, NGram

_OOV_PENALTY = -10.0  # nats, beside the model's own "<unk>": an unknown word is one of very many
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


class WordNGram(StepScorer):
    """A word model; no lexicon bounds what can be spelled.

    A word is scored when the next one begins, or at the end. One that the model does not know also costs a penalty,
    which is charged as soon as no known word begins as it does: an early warning for the search, not a higher price.
    """

    def __init__(self, ngram: NGram, pieces: tuple[str, ...]):
        super().__init__(len(pieces))
        self._ngram, self._pieces = ngram, pieces
        self._words = None if ngram.vocabulary is None else sorted(ngram.vocabulary)

    def initial(self) -> Any:
        return self._ngram.begin(), "", False

    def step(self, value: Any, token: int) -> tuple[float, int, Any]:
        state, word, charged = value
        *finished, word = (word + self._pieces[token]).split(SPACE)
        log_prob = 0.0
        finished = [each for each in finished if each]
        for each in finished:
            gain, state = self._finish(state, each, charged)
            log_prob, charged = log_prob + gain, False
        if not charged and not self._begins_a_word(word):
            log_prob, charged = log_prob + _OOV_PENALTY, True
        return log_prob, len(finished), (state, word, charged)

    def end(self, value: Any) -> tuple[float, int]:
        state, word, charged = value
        log_prob = 0.0
        if word:
            log_prob, state = self._finish(state, word, charged)
        return log_prob + self._ngram.extend(state, END)[0], int(bool(word))

    def _finish(self, state: Any, word: str, charged: bool) -> tuple[float, Any]:
        word = _BYTES.sub(_join_bytes, word)
        log_prob, state = self._ngram.extend(state, word)
        return log_prob + (0.0 if charged or word in self._ngram else _OOV_PENALTY), state

    def _begins_a_word(self, beginning: str) -> bool:
        if self._words is None or "<0x" in beginning:
            return True
        place = bisect.bisect_left(self._words, beginning)
        return place < len(self._words) and self._words[place].startswith(beginning)


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
