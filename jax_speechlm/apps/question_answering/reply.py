"""Answers with what they rest on."""

from typing import NamedTuple, Protocol, runtime_checkable


class Reply(NamedTuple):
    """What is known of a question.

    Attributes:
      answer: None if the question cannot be answered.
      say: a sentence to print or speak.
      confidence: in [0, 1], of the best answer, also of one that was not good enough.
      source: where the answer is from.
      passage: the text that it is from; '' of a graph.
    """

    answer: str | None
    say: str
    confidence: float = 0.0
    source: str = ""
    passage: str = ""


@runtime_checkable
class Answerer(Protocol):
    """What answers questions; `method` describes it."""

    method: str

    def ask(self, question: str) -> Reply:
        """Answers a question, or says that it cannot."""
        ...


UNKNOWN = "I do not know."
