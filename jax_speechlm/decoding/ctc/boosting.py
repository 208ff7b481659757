"""Contextual boosting: raises the score of words and phrases that a user expects.

The phrases form one Aho-Corasick automaton over characters, word boundaries included, so that any tokenizer gives the
same score. A partial match contributes a share of the bonus in proportion to its length. The score of a prefix is the
bonuses of complete phrases plus the share of the match at its end, so a failed match contributes nothing.
"""

import collections
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.decoding.lm.fusion import StepScorer
from jax_speechlm.decoding.lm.ngram import SPACE

_BONUS_PER_WORD = 5.0  # nats


def read_phrases(path: Path | str, tokenizer: Tokenizer) -> dict[str, float]:
    """Reads phrases from a text file: one phrase a line, optionally followed by a tab and its bonus.

    Returns:
      The bonus of every phrase in nats.

    Raises:
      DataError: the file is missing or empty, a bonus is not a number, or the tokenizer has no token for a character.
    """
    try:
        lines = list(text_lines(Path(path)))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: create it with one word or phrase to boost per line") from None
    phrases = {}
    for line_number, line in lines:
        phrase, _, bonus = line.partition("\t")
        phrase = " ".join(unicodedata.normalize("NFKC", phrase).split())
        if not phrase:
            continue
        if unknown := set(tokenizer.unknown(phrase)) - {" "}:
            raise DataError(
                f"{path}, line {line_number}: the recognizer has no token for {''.join(sorted(unknown))!r} in "
                f"{phrase!r}; write the phrase as in the transcripts that it was trained on"
            )
        try:
            phrases[phrase] = float(bonus) if bonus.strip() else _BONUS_PER_WORD * len(phrase.split())
            if not math.isfinite(phrases[phrase]):
                raise ValueError("not finite")
        except ValueError:
            raise DataError(
                f"{path}, line {line_number}: {bonus!r} is not a number; after the tab write the bonus in nats"
            ) from None
    if not phrases:
        raise DataError(f"{path} has no phrase: write one word or phrase to boost per line")
    return phrases


class Boost(StepScorer):
    """Scorer of the sum of the bonuses of all phrases that occur as whole words; phrases may overlap."""

    def __init__(self, phrases: Mapping[str, float], pieces: tuple[str, ...]):
        super().__init__(len(pieces))
        self._pieces = pieces
        # By node: transitions, the longest proper suffix that is a node, the share of a partial match, and the bonuses
        # of the phrases that end there.
        self._next: list[dict[str, int]] = [{}]
        self._fail, self._partial, self._done = [0], [0.0], [0.0]
        for phrase, bonus in phrases.items():
            self._insert(SPACE + phrase.replace(" ", SPACE) + SPACE, bonus)
        queue = collections.deque(self._next[0].values())
        while queue:  # in order of depth
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self._follow(self._fail[node], character)
                self._done[child] += self._done[self._fail[child]]
                queue.append(child)

    def initial(self) -> int:
        return self._follow(0, SPACE)

    def step(self, value: int, token: int) -> tuple[float, int, int]:
        node, done = value, 0.0
        for character in self._pieces[token]:
            node = self._follow(node, character)
            done += self._done[node]
        return done + self._partial[node] - self._partial[value], 0, node

    def end(self, value: int) -> tuple[float, int]:
        return self._done[self._follow(value, SPACE)] - self._partial[value], 0

    def _insert(self, text: str, bonus: float) -> None:
        node = 0
        for position, character in enumerate(text):
            if character not in self._next[node]:
                self._next[node][character] = len(self._next)
                for values, new in ((self._next, {}), (self._fail, 0), (self._partial, 0.0), (self._done, 0.0)):
                    values.append(new)
            node = self._next[node][character]
            if position < len(text) - 1:
                self._partial[node] = max(self._partial[node], bonus * position / (len(text) - 1))
        self._done[node] += bonus

    def _follow(self, node: int, character: str) -> int:
        while node and character not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(character, 0)
