"""Phrasing of given replies by a language model, which may change their words and not what they say."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from jax_speechlm.decoding.lm.generate import Sampling
from jax_speechlm.inference.lm.generation import Continuation

PROMPT = "rephrase: {reply}"
"""What the model continues: in the form of a text-to-text model's tasks."""

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_LONGEST = 2.0  # of a phrasing, in lengths of the reply
_SAMPLING = Sampling(temperature=0.7, top_p=0.9)


@runtime_checkable
class Generates(Protocol):
    """What generates text, such as a loaded run."""

    def generate(
        self, prompts: Sequence[str], method: Sampling, *, max_tokens: int, samples: int
    ) -> list[list[Continuation]]:
        """Continues prompts, `samples` times each."""


@dataclasses.dataclass(frozen=True)
class Phrasing:
    """Phrases replies.

    A phrasing is taken if it names the values, the numbers and the intention to ask that the reply has, and no others;
    without such a one the reply stays as it is.

    Attributes:
      model: a run that generates text.
      prompt: what it continues, with the reply for "{reply}".
      candidates: phrasings that are drawn for each reply.
    """

    model: Generates
    prompt: str = PROMPT
    candidates: int = 4

    def __post_init__(self):
        """Raises ValueError if the prompt has no place for the reply."""
        if "{reply}" not in self.prompt:
            raise ValueError(f'the prompt of a phrasing, {self.prompt!r}, needs "{{reply}}", where the reply stands')

    def of(self, reply: str, values: Collection[str]) -> str:
        """Returns the reply, or the likeliest phrasing that says the same; the same for the same reply.

        Args:
          values: everything that replies may name in other cases, such as the values of all slots.
        """
        if not reply:
            return reply
        prompt = self.prompt.replace("{reply}", reply)
        options = {"max_tokens": int(_LONGEST * len(reply)) + 1, "samples": self.candidates}
        (drawn,) = self.model.generate([prompt], _SAMPLING, **options)
        best = sorted(drawn, key=lambda each: -each.log_prob / max(each.num_tokens, 1))
        lines = (each.text.strip().partition("\n") for each in best if each.ended or "\n" in each.text.strip())
        return next((line for line, _, _ in lines if says_the_same(reply, line, values)), reply)


def says_the_same(reply: str, phrasing: str, values: Collection[str]) -> bool:
    """Returns whether two texts name the same values and numbers as often, both ask or neither does, and the second is
    not too long."""
    if not phrasing or len(phrasing) > _LONGEST * len(reply) or reply.count("?") != phrasing.count("?"):
        return False
    return _named(reply, values) == _named(phrasing, values)


def _named(text: str, values: Collection[str]) -> Counter[str]:
    """Counts values and numbers in a text; a longer value hides those within it."""
    longest_first = sorted(filter(None, values), key=len, reverse=True)
    words = "|".join(rf"\b{re.escape(value.lower())}\b" for value in longest_first)
    return Counter(re.findall(f"{words}|{_NUMBER.pattern}" if words else _NUMBER.pattern, text.lower()))
