"""The declaration of a dialogue in YAML: its nodes, their prompts and slots, and the order of nodes."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import pydantic

from jax_speechlm.apps.commands import grammar as grammars
from jax_speechlm.apps.commands.grammar import Grammar
from jax_speechlm.apps.yaml_file import Place, YamlFile
from jax_speechlm.core.config import Config

SHIPPED = Path(__file__).parent
_LANGUAGES = {path.stem: path for path in (SHIPPED / "phrases").glob("*.yaml")}

_TEMPLATES = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
_BEFORE_PUNCTUATION = re.compile(r" ([.,;:?!])")
_PHRASES = ("yes", "no", "repeat", "help", "cancel", "lead", "tail", "nth")
Sentences = Annotated[tuple[str, ...], pydantic.Field(min_length=1)]


class Slot(Config):
    """A value that a form needs.

    Attributes:
      ask: the question for it; None of a slot that is taken when it is said, and never asked for.
      offer: values that the question names, in order, so that "the second one" is an answer.
      list: its list in the grammar; None if the list has the slot's name.
    """

    ask: str | None = None
    offer: tuple[str, ...] = ()
    list: str | None = None


class Choice(Config):
    """One choice of a menu.

    Attributes:
      sentences: what is said for it, as templates in hassil's format.
      next: the node that follows.
    """

    sentences: Sentences
    next: str


class Node(Config):
    """A state of the dialogue: a form, a menu, or something said.

    Attributes:
      say: prompt on arrival.
      intent: of a form: the grammar's intent whose slots it collects.
      sentences: of a form: further sentences for its intent, such as answers to its question.
      slots: of a form: the slots, asked for in this order.
      confirm: of a form: the question before it is done; None asks none.
      done: of a form: what is said when it is done.
      choices: of a menu.
      next: the node that follows a form, or something said; without it the dialogue ends.
    """

    say: str = ""
    intent: str | None = None
    sentences: tuple[str, ...] = ()
    slots: dict[str, Slot] = pydantic.Field(default_factory=dict)
    confirm: str | None = None
    done: str = ""
    choices: tuple[Choice, ...] = ()
    next: str | None = None

    @pydantic.model_validator(mode="after")
    def _is_one_of_three(self):
        if self.choices and (self.intent or self.next):
            raise ValueError("a node with choices is a menu: it has no intent, and each choice its own next")
        if not self.intent and (self.sentences or self.slots or self.confirm or self.done):
            raise ValueError("sentences, slots, confirm and done belong to a form: name its intent")
        if not (self.say or self.intent):
            raise ValueError("a node without an intent has something to say")
        return self

    @property
    def following(self) -> tuple[str, ...]:
        """Names of the nodes that may follow."""
        return tuple(choice.next for choice in self.choices) or ((self.next,) if self.next else ())


class Reaction(Config):
    """Reaction to a turn that is none.

    Attributes:
      say: prompt before the question is repeated.
      most: times in a row after which the dialogue ends.
      end: last prompt.
    """

    say: str
    most: pydantic.PositiveInt
    end: str


class Timeout(Reaction):
    """Reaction to silence of some `seconds`."""

    seconds: pydantic.PositiveFloat = 8.0
    say: str = "Are you still there?"
    most: pydantic.PositiveInt = 2
    end: str = "I heard nothing, so I end here."


class Misunderstood(Reaction):
    """Reaction to a turn outside the grammar."""

    say: str = "Sorry, I did not understand."
    most: pydantic.PositiveInt = 3
    end: str = "Sorry, I cannot help you."


class Declaration(Config):
    """The content of a dialogue's file.

    Attributes:
      grammar: the file of the intents in hassil's format, relative to the dialogue's, or a shipped one.
      start: the first node.
      change: the question after a "no" to what was to be confirmed.
      help: what is said for "help", before the question is repeated.
      phrases: what is said for `yes`, `no`, `repeat`, `help`, `cancel`, `lead` and `tail` (before and after a
        bare value) and `nth` (a list of lists: for the first value, the second, ...). English has all by default.
    """

    language: str = "en"
    grammar: str | None = None
    start: str
    nodes: Annotated[dict[str, Node], pydantic.Field(min_length=1)]
    change: str = "What should I change?"
    help: str = "Answer the question, or say: repeat, start over."
    timeout: Timeout = Timeout()
    misunderstood: Misunderstood = Misunderstood()
    phrases: dict[str, tuple[str, ...] | tuple[tuple[str, ...], ...]] = pydantic.Field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """A dialogue that has been checked.

    Attributes:
      file: its file.
      declared: its content.
      intents: the grammar's values in hassil's format, without the intents.
      data: the sentences of the grammar's intents, by name.
      phrases: of the language, completed by the file's own.
    """

    file: YamlFile
    declared: Declaration
    intents: Mapping[str, Any]
    data: Mapping[str, list[dict[str, Any]]]
    phrases: Mapping[str, Any]

    @classmethod
    def load(cls, name: str | Path) -> "Script":
        """Reads a dialogue from a YAML file, or a shipped one by its name, such as "coffee".

        Raises:
          DataError: it cannot be read, or would not work: a node that does not exist, is never reached or has no way to
            an end, an intent or slot that nothing fills, a template that does not hold. The message names file and
            line.
        """
        file = YamlFile.read(name, SHIPPED)
        declared = file.validated(Declaration)
        intents: dict[str, Any] = {"lists": {}, "expansion_rules": {}, "skip_words": []}
        data = {}
        if declared.grammar is not None:
            beside = file.path.parent / declared.grammar
            source = grammars.read_grammar(beside if beside.exists() else declared.grammar)
            Grammar.compiled(source)  # its own errors first
            data = {name: intent["data"] for name, intent in source.values["intents"].items()}
            intents |= {name: value for name, value in source.values.items() if name not in ("intents", "language")}
        common = YamlFile.read(_LANGUAGES[declared.language], SHIPPED).values if declared.language in _LANGUAGES else {}
        script = cls(file, declared, intents, data, {**common, **declared.phrases})
        script._check()
        return script

    def grammar(self, intents: Mapping[str, list[dict[str, Any]]]) -> Grammar:
        """Compiles the grammar of what may be said at some point of the dialogue."""
        sentences = {name: {"data": data} for name, data in intents.items()}
        values = {**self.intents, "language": self.declared.language, "intents": sentences}
        return Grammar.compiled(YamlFile(self.file.path, values, {}))

    def say(self, template: str, slots: Mapping[str, str]) -> str:
        """Fills in a template. Slots that were not said are empty."""
        said = _template(template).render(dict.fromkeys(self._slot_names, "") | dict(slots))
        return _BEFORE_PUNCTUATION.sub(r"\1", " ".join(said.split()))

    @functools.cached_property
    def values(self) -> frozenset[str]:
        """The values of the grammar's lists, which replies name where slots have them."""
        listed = (each for values in self.intents["lists"].values() for each in values.get("values", ()))
        return frozenset(str(each["out"]) if isinstance(each, dict) else each for each in listed)

    def graph(self) -> str:
        """Draws the dialogue as a Mermaid graph of its replies and choices."""
        lines = ["flowchart TD"]
        names = {name: f"n{number}" for number, name in enumerate(self.declared.nodes)}
        for name, node in self.declared.nodes.items():
            asked = [f"{slot} ?" for slot, each in node.slots.items() if each.ask]
            text = "<br/>".join([f"<b>{name}</b>", *filter(None, [node.say]), *asked]).replace('"', "'")
            left, right = ("{{", "}}") if node.choices else ("[", "]") if node.intent else ("([", "])")
            lines.append(f'  {names[name]}{left}"{text}"{right}')
            for choice in node.choices:
                said = choice.sentences[0].replace('"', "'")
                lines.append(f'  {names[name]} -->|"{said}"| {names[choice.next]}')
            if node.next:
                lines.append(f"  {names[name]} --> {names[node.next]}")
        return "\n".join(lines) + "\n"

    @functools.cached_property
    def _slot_names(self) -> set[str]:
        return {slot for node in self.declared.nodes.values() for slot in node.slots}

    def _check(self) -> None:
        declared, nodes = self.declared, self.declared.nodes
        if missing := [name for name in _PHRASES if name not in self.phrases]:
            raise self.file.error(
                ("language",), f"has no phrases for {', '.join(missing)}, which {declared.language!r} needs"
            )
        for place, name in self._links():
            if name not in nodes:
                raise self.file.error(place, f"there is no node {name!r}: the nodes are {', '.join(nodes)}")
        reached = _closure([declared.start], lambda name: nodes[name].following)
        for name in nodes:
            if name not in reached:
                raise self.file.error(("nodes", name), f"nothing leads to {name}")
            if not any(not nodes[each].following for each in _closure([name], lambda name: nodes[name].following)):
                raise self.file.error(("nodes", name), f"from {name} the dialogue never ends")
        for name, node in nodes.items():
            self._check_form(name, node)
        for place, template in self._templates():
            try:
                used = jinja2.meta.find_undeclared_variables(_TEMPLATES.parse(template))
                if unknown := used - self._slot_names:
                    raise self.file.error(place, f"{template!r} names {', '.join(sorted(unknown))}, which is no slot")
                self.say(template, {})
            except jinja2.TemplateError as error:
                raise self.file.error(place, f"{template!r} is no template: {error}") from error

    def _check_form(self, name: str, node: Node) -> None:
        if node.intent is None:
            return
        if node.intent not in self.data:
            known = ", ".join(self.data) or "none, as no grammar is named"
            raise self.file.error(("nodes", name, "intent"), f"there is no intent {node.intent!r}: there are {known}")
        for slot, each in node.slots.items():
            place = ("nodes", name, "slots", slot)
            values = self.intents["lists"].get(each.list or slot)
            if values is None:
                raise self.file.error(place, f"nothing fills {slot}: the grammar has no list {each.list or slot!r}")
            known = {value if isinstance(value, str) else value["out"] for value in values.get("values", [])}
            if unknown := [offered for offered in each.offer if known and offered not in known]:
                raise self.file.error((*place, "offer"), f"{', '.join(unknown)} is not in the grammar's list")

    def _links(self) -> Iterator[tuple[Place, str]]:
        yield ("start",), self.declared.start
        for name, node in self.declared.nodes.items():
            if node.next:
                yield ("nodes", name, "next"), node.next
            for number, choice in enumerate(node.choices):
                yield ("nodes", name, "choices", number, "next"), choice.next

    def _templates(self) -> Iterator[tuple[Place, str]]:
        for name, node in self.declared.nodes.items():
            yield from (
                (("nodes", name, key), text) for key in ("say", "confirm", "done") if (text := getattr(node, key))
            )
            for slot, each in node.slots.items():
                if each.ask:
                    yield ("nodes", name, "slots", slot, "ask"), each.ask


def _closure(names: Iterable[str], following: Any) -> set[str]:
    """Returns the nodes that are reached from some, and these."""
    reached, waiting = set(), list(names)
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += following(name)
    return reached


@functools.lru_cache(maxsize=1024)
def _template(text: str) -> jinja2.Template:
    return _TEMPLATES.from_string(text)
