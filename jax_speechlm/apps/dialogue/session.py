"""The state of one conversation: the present node, its slots, and the next prompt."""

import dataclasses
import functools
import json
import threading
from collections.abc import Mapping
from typing import Any

import jax_speechlm.apps.dialogue.script as scripts
from data_pipelines.core.errors import DataError
from jax_speechlm.apps.commands.grammar import Grammar
from jax_speechlm.apps.commands.understanding import Meaning
from jax_speechlm.inference.lm.phrasing import Phrasing

_COMPILING = threading.Lock()
_FIELDS = ("node", "is_confirming", "slots", "offered", "question", "misunderstood", "silences", "ended", "done")


@dataclasses.dataclass(frozen=True)
class Done:
    """A form that was completed: its node, the intent, and the values of the slots that were said."""

    node: str
    intent: str
    slots: Mapping[str, str]


class Session:
    """One conversation by a script.

    Nothing that is said is ever executed or filled in as text: a turn is one of the meanings that the grammar of the
    moment has, and slots have values of its lists.

    Args:
      phrasing: of the replies to turns; None leaves them as the script has them.

    Attributes:
      node: name of the present node.
      slots: values of the present form.
      done: the forms that were completed.
      ended: why the conversation has ended: "complete", "silence" or "misunderstood"; "" while it goes on.
    """

    def __init__(self, script: scripts.Script, phrasing: Phrasing | None = None):
        self.script, self.phrasing = script, phrasing
        self.node, self.is_confirming, self.slots = script.declared.start, False, dict[str, str]()
        self.offered: str | None = None
        self.question = ""
        self.misunderstood = self.silences = 0
        self.ended, self.done = "", list[Done]()

    @property
    def is_over(self) -> bool:
        return bool(self.ended)

    @property
    def is_understood(self) -> bool:
        """Whether the last turn was one that is expected."""
        return not (self.silences or self.misunderstood)

    def start(self) -> str:
        """Returns the first prompt."""
        return self._arrive(self.script.declared.start)

    @property
    def expected(self) -> Grammar:
        """The grammar of what may be said now."""
        with _COMPILING:  # conversations that begin at once wait for one compilation
            return _expected(self.script, self.node, self.is_confirming, self.offered)

    def take_silence(self) -> str:
        """Takes a silence of `timeout.seconds`; returns the reply."""
        self.silences += 1
        return self._ask_again(self.script.declared.timeout, self.silences, "silence")

    def take(self, intent: str | None, slots: Mapping[str, str]) -> str:
        """Takes a turn of the user; returns the reply.

        Args:
          intent: as `expected.understand` names it; None of what is not in the grammar.
          slots: values of the intent.
        """
        if self.is_over:
            raise ValueError("the conversation is over")
        self.silences = 0
        declared, node = self.script.declared, self._node
        kind, _, name = (intent or "").partition(" ") if (intent or "=").startswith("=") else ("form", "", "")
        if not kind or (kind == "=nth" and int(name) >= self._offers):
            self.misunderstood += 1
            return self._ask_again(declared.misunderstood, self.misunderstood, "misunderstood")
        self.misunderstood = 0
        if kind == "=cancel":
            return self._arrive(declared.start)
        if kind in ("=repeat", "=help"):
            return self.question if kind == "=repeat" else f"{declared.help} {self.question}"
        if kind == "=yes":
            return self._complete()
        if kind == "=no":
            return self._ask(declared.change)
        if kind == "=choice" or (kind == "=nth" and node.choices):
            return self._arrive(node.choices[int(name)].next)
        if kind == "=nth":
            slots = {self.offered: node.slots[self.offered].offer[int(name)]}
        self.slots |= slots
        return self._go_on()

    def reply_to(self, meaning: Meaning | None) -> str:
        """Takes a turn, or silence; returns the reply, phrased by the language model if there is one."""
        said = self.take_silence() if meaning is None else self.take(meaning.intent, meaning.slots)
        return said if self.phrasing is None else self.phrasing.of(said, self.script.values)

    def state(self) -> dict[str, Any]:
        """Returns the state, as JSON has it."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return fields | {"done": [dataclasses.asdict(each) for each in self.done]}

    def to_json(self) -> str:
        """Returns the state, for a service that keeps it between turns."""
        return json.dumps(self.state())

    @classmethod
    def from_json(cls, script: scripts.Script, text: str) -> "Session":
        """Continues a conversation from its state. Raises `DataError` if the script has no such state."""
        session = cls(script)
        try:
            state = json.loads(text)
            for name in _FIELDS:
                setattr(session, name, state[name])
            session.done = [Done(**each) for each in state["done"]]
            if session.offered not in {None, *session._node.slots}:
                raise KeyError(session.offered)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{script.file.path}: this is no state of the dialogue ({error!r})") from error
        return session

    @property
    def _node(self) -> scripts.Node:
        return self.script.declared.nodes[self.node]

    @property
    def _offers(self) -> int:
        """The number of values or choices that may be named by their place."""
        return len(self._node.choices) or (len(self._node.slots[self.offered].offer) if self.offered else 0)

    def _ask(self, question: str) -> str:
        self.question = self.script.say(question, self.slots)
        return self.question

    def _ask_again(self, reaction: scripts.Reaction, times: int, kind: str) -> str:
        if times > reaction.most:
            self.ended = kind
            return reaction.end
        return f"{reaction.say} {self.question}"

    def _arrive(self, name: str) -> str:
        """Goes to a node, and on until something is asked or the dialogue ends."""
        self.node, self.is_confirming, self.offered = name, False, None
        node = self._node
        if node.intent is not None:
            self.slots = {}
            return self._ask(node.say) if node.say else self._go_on()
        said = self._ask(node.say)
        if node.choices:
            return said
        if node.next is None:
            self.ended = "complete"
            return said
        return f"{said} {self._arrive(node.next)}"

    def _go_on(self) -> str:
        """Asks for the next value of a form, or to confirm them."""
        node = self._node
        for slot, each in node.slots.items():
            if each.ask and slot not in self.slots:
                self.is_confirming, self.offered = False, slot if each.offer else self.offered
                return self._ask(each.ask)
        if node.confirm:
            self.is_confirming = True
            return self._ask(node.confirm)
        return self._complete()

    def _complete(self) -> str:
        node = self._node
        self.done.append(Done(self.node, node.intent or "", dict(self.slots)))
        said = self.script.say(node.done, self.slots)
        if node.next is None:
            self.ended = "complete"
            return said
        return f"{said} {self._arrive(node.next)}".strip()


@functools.lru_cache(maxsize=1024)
def _expected(script: scripts.Script, name: str, is_confirming: bool, offered: str | None) -> Grammar:
    """Compiles the grammar of what may be said at a node."""
    node, phrases = script.declared.nodes[name], script.phrases
    said: dict[str, list[str]] = {f"={kind}": list(phrases[kind]) for kind in ("repeat", "help", "cancel")}
    no = f"[{'|'.join(f'({phrase})' for phrase in phrases['no'])}] " if is_confirming else ""
    if is_confirming:
        said |= {f"={kind}": list(phrases[kind]) for kind in ("yes", "no")}
    lead, tail = ("|".join(f"({phrase})" for phrase in phrases[kind]) for kind in ("lead", "tail"))
    for slot, each in node.slots.items():
        values = slot if each.list in (None, slot) else f"{each.list}:{slot}"
        said[f"=value {slot}"] = [f"{no}[{lead}] {{{values}}} [{tail}]"]
    for number, choice in enumerate(node.choices):
        said[f"=choice {number}"] = list(choice.sentences)
    offers = len(node.choices) or (len(node.slots[offered].offer) if offered else 0)
    for number, ordinal in enumerate(phrases["nth"] if offers else ()):  # those beyond the last are understood as such
        said[f"=nth {number}"] = [f"{no}({phrase})" for phrase in ordinal]
    intents: dict[str, Any] = {kind: [{"sentences": sentences}] for kind, sentences in said.items()}
    if node.intent is not None:
        blocks = [*script.data[node.intent], *([{"sentences": list(node.sentences)}] if node.sentences else [])]
        intents[node.intent] = [
            block | {"sentences": [f"{no}({sentence})" for sentence in block["sentences"]]} for block in blocks
        ]
    return script.grammar(intents)
