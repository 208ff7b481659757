"""Scripted conversations: a dialogue's tests, typed or spoken, and how often they succeed."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import pydantic
from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.inference.segmentation import Samples


class ScriptedTurn(Config):
    """A turn of the user, and what should come of it.

    Attributes:
      user: what the user says.
      audio: a recording of it, relative to the file; without one it is synthesised where speech is tried.
      silence: nothing is said, instead.
      says: a part of the reply.
      at: the node after the turn.
      slots: values of the form after the turn, those that matter.
    """

    user: str = ""
    audio: str | None = None
    silence: bool = False
    says: str | None = None
    at: str | None = None
    slots: dict[str, str] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _says_something_or_nothing(self):
        if bool(self.user) == self.silence:
            raise ValueError("a turn has what the user says, or silence: true")
        return self


class Conversation(Config):
    """A scripted conversation.

    Attributes:
      done: slots of the forms that are completed in it, in order, all of them.
      is_over: whether the dialogue has ended after it.
    """

    name: str
    turns: Annotated[tuple[ScriptedTurn, ...], pydantic.Field(min_length=1)]
    done: tuple[dict[str, str], ...] = ()
    is_over: bool = True


class Conversations(Config):
    """The content of a file of scripted conversations."""

    conversations: Annotated[tuple[Conversation, ...], pydantic.Field(min_length=1)]


class Outcome(Config):
    """What became of a scripted conversation.

    Attributes:
      wrong: what differs first; '' of a success.
      turns: of the user.
      understood: turns of speech that had the meaning of the text; None where it is typed.
      latency: seconds from the end of a turn of speech to the reply's first sample, or its text, one per turn.
      seconds: of the user's speech and of the computation.
    """

    name: str
    wrong: str
    turns: int
    understood: int | None
    latency: tuple[float, ...]
    seconds: float


class TrialReport(base.Report):
    """Scripted conversations with a dialogue.

    Attributes:
      dialogue, speech: what was tried, and how turns were said: "typed", "recorded or synthesised".
    """

    dialogue: str
    speech: str
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.wrong]

    def tables(self) -> Iterator[Table]:
        """Yields success with its interval, turns, time, and the failures."""
        outcomes, count = self.outcomes, len(self.outcomes)
        share = 1 - len(self.failed) / count
        low, high = wilson_interval(share, count)
        table = Table(title=f"{self.dialogue}, {count} scripted conversations, {self.speech}")
        for column in ("success [95 %]", "turns", "seconds", "turns understood", "latency, median, ms"):
            table.add_column(column, justify="right")
        heard = [outcome.understood for outcome in outcomes if outcome.understood is not None]
        turns = sum(outcome.turns for outcome in outcomes)
        delays = [delay for outcome in outcomes for delay in outcome.latency]
        table.add_row(
            f"{share:.0%} [{low:.0%}, {high:.0%}]",
            f"{turns / count:.1f}",
            f"{statistics.mean(outcome.seconds for outcome in outcomes):.1f}",
            f"{sum(heard)} of {turns}" if heard else "-",
            f"{1000 * statistics.median(delays):.0f}" if delays else "-",
        )
        yield table
        if self.failed:
            failures = Table("conversation", "first difference", title="failed")
            for outcome in self.failed:
                failures.add_row(outcome.name, outcome.wrong)
            yield failures


@runtime_checkable
class Completed(Protocol):
    """A form that was completed."""

    slots: Mapping[str, str]


@runtime_checkable
class Session(Protocol):
    """The state of a dialogue in a conversation."""

    node: str
    slots: Mapping[str, str]
    done: Sequence[Completed]
    is_over: bool


def hold(
    conversation: Conversation,
    session: Session,
    record: Callable[[ScriptedTurn], Samples | None],
    answer: Callable[[ScriptedTurn, Samples | None], tuple[str, bool]],
    rate: int | None = None,
) -> Outcome:
    """Holds one conversation, to its end or to the end of the dialogue.

    Args:
      session: its state, after the first prompt.
      record: prepares a turn; returns its recording, None of one that is typed or silent.
      answer: takes a turn and its recording; returns the reply, and whether the recording was understood as the text
        is. Its time is the latency.
      rate: of recordings, in Hz; None of conversations that are typed.
    """
    wrong, understood, latency, seconds = "", 0, [], 0.0
    for number, turn in enumerate(conversation.turns, 1):
        if session.is_over:
            wrong = wrong or f"turn {number}: the dialogue is over"
            break
        recording = record(turn)
        begin = time.perf_counter()
        reply, is_understood = answer(turn, recording)
        delay = time.perf_counter() - begin
        seconds += delay + (len(recording) / rate if rate and recording is not None else 0.0)
        understood += is_understood
        if not turn.silence:
            latency.append(delay)
        wrong = wrong or _difference(number, turn, session, reply)
    done = tuple(dict(each.slots) for each in session.done)
    if not wrong and done != conversation.done:
        wrong = f"completed {list(done)} instead of {list(conversation.done)}"
    if not wrong and session.is_over != conversation.is_over:
        wrong = "the dialogue has not ended" if conversation.is_over else "the dialogue has ended"
    return Outcome(
        name=conversation.name,
        wrong=wrong,
        turns=len(conversation.turns),
        understood=None if rate is None else understood,
        latency=tuple(latency),
        seconds=seconds,
    )


def _difference(number: int, turn: ScriptedTurn, session: Session, reply: str) -> str:
    if turn.says is not None and turn.says not in reply:
        return f"turn {number}: the reply is {reply!r}"
    if turn.at not in (None, session.node):
        return f"turn {number}: is at {session.node}, not at {turn.at}"
    if wrong := {
        name: session.slots.get(name) for name, value in turn.slots.items() if session.slots.get(name) != value
    }:
        return f"turn {number}: slots are {wrong}"
    return ""
