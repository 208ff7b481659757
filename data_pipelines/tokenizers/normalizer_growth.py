"""Limit of the growth of a text in the normalizer and the decoder of a `tokenizer.json`.

A few consecutive rules ("a" becomes ten "a", seven times) turn three letters into tens of millions, so an untrusted
file could use up all memory. In most files the product of all rules' factors is small. For the others,
`GrowthLimit.check` applies the rules one at a time and stops before the first that could exceed the limit.
"""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MOST_GROWTH = 100
"""A text may become this many times as long, plus `SPARE` characters."""

SPARE = 10_000

_FACTORS = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 9, "ByteLevel": 4}
"""Most characters that one character becomes (Unicode Standard Annex 15, section 9; case folding; bytes of UTF-8)."""

_ONE_CHARACTER = re.compile(r"\[(?:\\.|[^\[\]\\])*\]")


class _Step(NamedTuple):
    """One rule: a text of n characters becomes one of at most n * factor + added."""

    rule: Mapping[str, Any]
    factor: float
    added: int

    def bound(self, text: str) -> float:
        if pattern := _string(self.rule):  # counted, as such a rule may be long and rare
            return len(text) + text.count(pattern) * max(0, len(self.rule["content"]) - len(pattern))
        return len(text) * self.factor + self.added


class GrowthLimit:
    """The normalizer of a `tokenizer.json`, with a check that a text stays within `MOST_GROWTH` times its length."""

    def __init__(self, description: str):
        """
        Args:
          description: the text of a `tokenizer.json` that could be opened.

        Raises:
          ValueError: its decoder can exceed the limit.
        """
        values = json.loads(description)
        if (growth := _product(_steps(values.get("decoder"), "decoders"))) > MOST_GROWTH:
            raise ValueError(
                f"its decoder can make a text {growth:.0e} times as long; at most {MOST_GROWTH} is allowed"
            )
        steps = list(_steps(values.get("normalizer"), "normalizers"))
        self._steps = [(step, _normalizer(step.rule)) for step in steps] if _product(steps) > MOST_GROWTH else []

    def check(self, text: str) -> None:
        """Checks that the normalizer cannot make the text too long.

        Raises:
          ValueError: it can.
        """
        most = MOST_GROWTH * len(text) + SPARE
        for step, normalizer in self._steps:
            if step.bound(text) > most:
                raise ValueError(
                    f"its normalizer ({step.rule.get('type')}) could make more than {most:,} characters of it; at most "
                    f"{MOST_GROWTH} times the length is allowed"
                )
            text = normalizer.normalize_str(text)


def _product(steps: Iterator[_Step] | list[_Step]) -> float:
    return math.prod(step.factor + step.added for step in steps)


def _steps(rule: Mapping[str, Any] | None, several: str) -> Iterator[_Step]:
    if rule is None:
        return
    if several in rule:
        for part in rule[several]:
            yield from _steps(part, several)
    elif "pattern" in rule:
        yield _replace(rule)
    elif "prepend" in rule:
        yield _Step(rule, 1, len(rule["prepend"]))
    elif "precompiled_charsmap" in rule:
        yield _Step(rule, _longest_entry(rule["precompiled_charsmap"]), 0)
    else:
        yield _Step(rule, _FACTORS.get(rule.get("type"), 1), 0)


def _string(rule: Mapping[str, Any]) -> str | None:
    """Returns the text that a rule replaces; None if it is a regular expression, empty, or another kind of rule."""
    return rule.get("pattern", {}).get("String") or None


def _replace(rule: Mapping[str, Any]) -> _Step:
    length = len(rule["content"])
    if pattern := _string(rule):
        return _Step(rule, max(1, length / len(pattern)), 0)
    if _ONE_CHARACTER.fullmatch(rule["pattern"].get("Regex", "")):
        return _Step(rule, max(1, length), 0)
    return _Step(rule, 1 + length, length)  # it may match nothing, anywhere


def _longest_entry(charsmap: str) -> int:
    """Returns the most bytes for one character in SentencePiece's table of normalisation, which follows its trie."""
    table = base64.b64decode(charsmap or "")
    return max(1, *map(len, table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")))


def _normalizer(rule: Mapping[str, Any]) -> Any:
    import tokenizers

    parts = dict.fromkeys(("truncation", "padding", "pre_tokenizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return tokenizers.Tokenizer.from_str(
        json.dumps({"version": "1.0", **parts, "added_tokens": [], "normalizer": rule, "model": model})
    ).normalizer
