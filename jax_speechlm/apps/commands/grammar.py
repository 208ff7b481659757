"""Grammars of spoken commands: intent templates in the YAML format of hassil, which Home Assistant uses.

A grammar is compiled to an automaton over words. Recognition is held to it, or the sentence nearest to a recognised
text is found in it. hassil itself reads intent and slots off a sentence.
"""

import contextlib
import dataclasses
import functools
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hassil
from hassil.numbers import get_rbnf_engine
from hassil.parser import ParseError

from data_pipelines.core.errors import DataError
from data_pipelines.text.spoken_form import UnspeakableError, spoken_form
from jax_speechlm.apps.yaml_file import YamlFile
from jax_speechlm.decoding.automaton import Graph, TooManyStatesError

SHIPPED = Path(__file__).parent
MAX_STATES = 200_000
"""States of any automaton of a grammar."""

_SAID = ("in", "sentences", "skip_words")
_MAX_DEPTH = 24  # of rules within rules


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar.

    Attributes:
      path: its file.
      intents: what hassil reads.
      words: deterministic automaton over the words of its sentences, without skip words.
      warnings: lists and rules that no sentence uses.
    """

    path: Path
    intents: hassil.Intents
    words: Graph
    warnings: tuple[str, ...]

    @classmethod
    def load(cls, name: str | Path) -> "Grammar":
        """Reads a grammar from a YAML file, or a shipped one by its name, such as "coffee".

        Raises:
          DataError: it cannot be read, has no sentences, a dead end, a part that speech cannot be held to, or too many
            sentences; the message names the file and the line.
        """
        return cls.compiled(read_grammar(name))

    @classmethod
    def compiled(cls, source: YamlFile) -> "Grammar":
        """Compiles what `read_grammar` has read, or what was made of it. Raises as `load` does."""
        path = source.path
        try:
            intents = hassil.Intents.from_dict(_unhyphenated(source.values))
        except (ParseError, KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
            raise DataError(f"{path}: is no grammar in hassil's format ({error!r})") from error
        compiler = _Compiler(source, intents)
        words = compiler.words()
        return cls(path, intents, words, tuple(compiler.unused()))

    def where(self, word: str) -> str:
        """Returns the file, with the first line that has a word."""
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            if word in normal(line, self.intents.language).split():
                return f"{self.path}, line {number}"
        return str(self.path)

    def understand(self, sentence: str) -> tuple[str, dict[str, str]] | None:
        """Returns intent and slots of a sentence of the grammar; None of any other."""
        found = hassil.recognize_best(sentence, self.intents, language=self.intents.language)
        if found is None:
            return None
        return found.intent.name, {name: str(entity.value) for name, entity in found.entities.items()}

    def with_skip_words(self) -> Graph:
        """Returns the automaton over words in which skip words may occur before, after and between all others."""
        graph = Graph(MAX_STATES)
        graph.arcs = [list(arcs) for arcs in self.words.arcs]
        graph.final = set(self.words.final)
        for words in (normal(phrase, self.intents.language).split() for phrase in self.intents.skip_words):
            for state in range(len(self.words.arcs)):
                graph.add_arc(graph.add_path(state, words[:-1]), words[-1], state)
        return graph


def normal(text: str, language: str) -> str:
    """Returns a text as the words of a grammar: in small letters, numbers as words, without punctuation."""
    with contextlib.suppress(UnspeakableError):
        text = spoken_form(text, language)
    return " ".join("".join(map(_letter, text.casefold())).split())


def _letter(character: str) -> str:
    """Returns a character that speech has, or a space."""
    return character if character == "'" or unicodedata.category(character)[0] in "LMN" else " "


def _unhyphenated(part: Any) -> Any:
    """Returns the parts of a grammar with spaces for hyphens in what is said, as recognizers have them."""
    if isinstance(part, str):
        return part.replace("-", " ")
    if isinstance(part, list):
        return [_unhyphenated(each) for each in part]
    if not isinstance(part, dict):
        return part
    said = {key: _unhyphenated(each) for key, each in part.items() if key in _SAID or isinstance(each, dict | list)}
    if isinstance(part.get("values"), list):
        said["values"] = [
            {"in": _unhyphenated(each), "out": each} if isinstance(each, str) else _unhyphenated(each)
            for each in part["values"]
        ]
    if isinstance(rules := part.get("expansion_rules"), dict):
        said["expansion_rules"] = {name: _unhyphenated(rule) for name, rule in rules.items()}
    return part | said


def read_grammar(name: str | Path) -> YamlFile:
    """Reads a grammar's file. Raises `DataError` if a part that every grammar has is missing."""
    source = YamlFile.read(name, SHIPPED)
    intents = source.values.get("intents")
    if not isinstance(intents, dict) or not intents:
        raise source.error((), 'has no intents; write "language", and under "intents" their sentences')
    for name, intent in intents.items():
        if not isinstance(intent, dict) or not intent.get("data"):
            raise source.error(("intents", name), f'the intent {name} has no "data" with sentences')
        for number, block in enumerate(intent["data"]):
            if not isinstance(block, dict) or not block.get("sentences"):
                raise source.error(("intents", name, "data", number), f"a block of {name} has no sentences")
    for name, each in (source.values.get("lists") or {}).items():
        if not isinstance(each, dict) or not (each.get("values") or each.get("range") or each.get("wildcard")):
            raise source.error(("lists", name), f"the list {{{name}}} has no values: nothing fills its slot")
    return dataclasses.replace(source, values={"language": "en"} | source.values)


class _Compiler:
    """Compiles templates to an automaton over characters, and that to one over words."""

    def __init__(self, source: YamlFile, intents: hassil.Intents):
        self.source, self.intents = source, intents
        self.used: set[tuple[str, str]] = set()

    def words(self) -> Graph:
        """Returns the automaton over words of all sentences."""
        graph = Graph(MAX_STATES)
        for name, intent in self.intents.intents.items():
            for number, data in enumerate(intent.data):
                block = ("intents", name, "data", number)
                if data.requires_context or data.excludes_context:
                    raise self.source.error(block, "its sentences depend on a context, of which speech has none")
                for index, text in enumerate(data.sentence_texts):
                    place = (*block, "sentences", index)
                    try:
                        expression = hassil.parse_sentence(text, keep_text=True).expression
                        ends = self._add(graph, 0, expression, data, place, 0)
                    except ParseError as error:
                        raise self.source.error(place, f"{text!r} is no template ({error})") from error
                    except TooManyStatesError as error:
                        raise self.source.error(
                            place, f"{text!r} makes the grammar too large ({error}): shorten its lists or permutations"
                        ) from error
                    graph.final.add(ends)
                    if self._may_be_empty(graph, ends):
                        raise self.source.error(place, f"{text!r} may be empty: some of it must not be optional")
        try:
            return _by_words(_single_spaced(graph).determinized().minimized())
        except TooManyStatesError as error:
            raise DataError(
                f"{self.source.path}: too many sentences ({error}): shorten lists or permutations"
            ) from error

    def unused(self) -> Iterator[str]:
        """Yields a warning for each list and rule that no sentence uses."""
        for kind, names in (("lists", self.intents.slot_lists), ("expansion_rules", self.intents.expansion_rules)):
            for name in names:
                if (kind, name) not in self.used:
                    shown = f"the list {{{name}}}" if kind == "lists" else f"the rule <{name}>"
                    yield f"{self.source.where((kind, name))}: no sentence uses {shown}"

    def _may_be_empty(self, graph: Graph, end: int) -> bool:
        """Returns whether a state is reached by spaces alone."""
        seen, waiting = {0}, [0]
        while waiting:
            for label, target in graph.arcs[waiting.pop()]:
                if label in (None, " ") and target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return end in seen

    def _add(
        self, graph: Graph, start: int, part: Any, data: hassil.IntentData, place: tuple[str | int, ...], depth: int
    ) -> int:
        """Adds an expression of a template after a state; returns the state in which it ends."""
        if depth > _MAX_DEPTH:
            raise self.source.error(place, "its rules refer to each other without end")
        add = functools.partial(self._add, graph, data=data, place=place)
        if isinstance(part, hassil.TextChunk):
            return graph.add_path(start, map(_letter, part.text.casefold()))
        if isinstance(part, hassil.Alternative):
            return self._join(graph, [add(start, item, depth=depth) for item in part.items])
        if isinstance(part, hassil.Permutation):
            if not part.items:
                return start
            orders = part.iterate_permutations()
            return self._join(graph, [add(add(start, item, depth=depth), rest, depth=depth) for item, rest in orders])
        if isinstance(part, hassil.Group):
            for item in part.items:
                start = add(start, item, depth=depth)
            return start
        if isinstance(part, hassil.RuleReference):
            rules = self.intents.expansion_rules | data.expansion_rules
            if part.rule_name not in rules:
                raise self.source.error(place, f"there is no rule <{part.rule_name}> under expansion_rules")
            self.used.add(("expansion_rules", part.rule_name))
            return add(start, rules[part.rule_name].expression, depth=depth + 1)
        lists = self.intents.slot_lists | data.slot_lists
        if part.list_name not in lists:
            raise self.source.error(place, f"there is no list {{{part.list_name}}} under lists: nothing fills its slot")
        self.used.add(("lists", part.list_name))
        values = lists[part.list_name]
        if isinstance(values, hassil.TextSlotList):
            return self._join(graph, [add(start, value.text_in, depth=depth + 1) for value in values.values])
        if isinstance(values, hassil.RangeSlotList):
            return self._join(graph, [graph.add_path(start, text) for text in self._numbers(values)])
        raise self.source.error(place, f"the wildcard {{{part.list_name}}} is any text, and words must be known")

    def _numbers(self, values: hassil.RangeSlotList) -> Iterator[str]:
        engine = get_rbnf_engine(values.words_language or self.intents.language)
        for number in values.get_numbers():
            for text in set(engine.format_number(number).text_by_ruleset.values()):
                yield "".join(map(_letter, text.casefold()))

    def _join(self, graph: Graph, ends: list[int]) -> int:
        joined = graph.add_state()
        for end in ends:
            graph.add_arc(end, None, joined)
        return joined


def _single_spaced(graph: Graph) -> Graph:
    """Returns an automaton over characters whose sentences have single spaces, between words only."""
    before_word, in_word, after_word = range(3)
    result, numbers = Graph(3 * MAX_STATES), {(0, before_word): 0}
    waiting = [(0, before_word)]

    def number(state: int, place: int) -> int:
        if (state, place) not in numbers:
            numbers[state, place] = result.add_state()
            waiting.append((state, place))
        return numbers[state, place]

    while waiting:
        state, place = waiting.pop()
        source = numbers[state, place]
        if state in graph.final and place != before_word:
            result.final.add(source)
        for label, target in graph.arcs[state]:
            if label is None:
                result.add_arc(source, None, number(target, place))
            elif label == " ":
                result.add_arc(source, None, number(target, before_word if place == before_word else after_word))
            else:
                start = result.add_path(source, " ") if place == after_word else source
                result.add_arc(start, label, number(target, in_word))
    return result


def _by_words(characters: Graph) -> Graph:
    """Returns the automaton over words of a deterministic one over characters."""
    result, numbers, waiting = Graph(MAX_STATES), {0: 0}, [0]
    end = None
    while waiting:
        start = waiting.pop()
        stack = [("", start)]
        while stack:
            word, state = stack.pop()
            if word and state in characters.final:
                if end is None:
                    end = result.add_state()
                    result.final.add(end)
                result.add_arc(numbers[start], word, end)
            for label, target in characters.arcs[state]:
                if label != " ":
                    stack.append((word + label, target))
                    continue
                if target not in numbers:
                    numbers[target] = result.add_state()
                    waiting.append(target)
                result.add_arc(numbers[start], word, numbers[target])
    return result.determinized()
