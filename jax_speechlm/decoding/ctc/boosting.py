"""Contextual boosting: words and phrases that a user expects are made likelier.

The phrases are one Aho-Corasick automaton over characters, word boundaries included, so that it does not matter how a
tokenizer cuts them. A partial match holds the share of the bonus that its length has earned; as the score of a prefix
is completed bonuses plus what the match at its end holds, a match that fails has given everything back.
"""

import collections
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.decoding.lm.fusion import StepScorer
from jax_speechlm.decoding.lm.ngram import SPACE

_BONUS_PER_WORD = 5.0  # nats


def read_phrases(path: Path | str, tokenizer: Tokenizer) -> dict[str, float]:
    """Phrases and their bonuses in nats from a text file: one phrase a line, or a phrase, a tab and its bonus.

    Raises:
      DataError: the file is missing or empty, a bonus is no number, or a phrase cannot be spelled by the tokenizer.
    """
    try:
        lines = list(text_lines(Path(path)))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: write the words to expect into it, one a line") from None
    phrases = {}
    for number, line in lines:
        phrase, _, bonus = line.partition("\t")
        phrase = " ".join(unicodedata.normalize("NFKC", phrase).split())
        if not phrase:
            continue
        if unknown := set(tokenizer.unknown(phrase)) - {" "}:
            raise DataError(
                f"{path}, line {number}: the recognizer cannot spell {''.join(sorted(unknown))!r} of {phrase!r}; write "
                "it as the transcripts do that it was trained on"
            )
        try:
            phrases[phrase] = float(bonus) if bonus.strip() else _BONUS_PER_WORD * len(phrase.split())
            if not math.isfinite(phrases[phrase]):
                raise ValueError("not finite")
        except ValueError:
            raise DataError(
                f"{path}, line {number}: {bonus!r} is no number; behind the tab stands the bonus in nats"
            ) from None
    if not phrases:
        raise DataError(f"{path} holds no word: write the words to expect into it, one a line")
    return phrases


class Boost(StepScorer):
    """The sum of the bonuses of all phrases that occur, as whole words; phrases may overlap."""

    def __init__(self, phrases: Mapping[str, float], pieces: tuple[str, ...]):
        super().__init__(len(pieces))
        self._pieces = pieces
        # of each node: where a character leads, the longest proper suffix that is a node, what a partial match holds,
        # and the bonuses of the phrases that end there
        self._next: list[dict[str, int]] = [{}]
        self._fail, self._held, self._done = [0], [0.0], [0.0]
        for phrase, bonus in phrases.items():
            self._insert(SPACE + phrase.replace(" ", SPACE) + SPACE, bonus)
        self._link()

    def initial(self) -> int:
        return self._follow(0, SPACE)

    def step(self, value: int, token: int) -> tuple[float, int, int]:
        node, done = value, 0.0
        for character in self._pieces[token]:
            node = self._follow(node, character)
            done += self._done[node]
        return done + self._held[node] - self._held[value], 0, node

    def end(self, value: int) -> tuple[float, int]:
        return self._done[self._follow(value, SPACE)] - self._held[value], 0

    def _insert(self, text: str, bonus: float) -> None:
        node = 0
        for place, character in enumerate(text):
            if character not in self._next[node]:
                self._next[node][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._held.append(0.0)
                self._done.append(0.0)
            node = self._next[node][character]
            if place < len(text) - 1:
                self._held[node] = max(self._held[node], bonus * place / (len(text) - 1))
        self._done[node] += bonus

    def _link(self) -> None:
        waiting = collections.deque(self._next[0].values())
        while waiting:  # shorter before longer
            node = waiting.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self._follow(self._fail[node], character)
                self._done[child] += self._done[self._fail[child]]
                waiting.append(child)

    def _follow(self, node: int, character: str) -> int:
        while node and character not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(character, 0)
