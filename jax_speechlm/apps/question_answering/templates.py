"""Questions to a knowledge graph: templates of questions, each with a query.

Nothing that is asked becomes part of a query: queries are parsed when the file is read, and variables of theirs are
bound to things of the graph.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import hassil
import pydantic
import rdflib
from hassil.errors import HassilError
from hassil.parser import ParseError
from hassil.sample import sample_expression
from rdflib.plugins.sparql import prepareQuery
from rdflib.plugins.sparql.algebra import traverse
from rdflib.plugins.sparql.sparql import Query

from jax_speechlm.apps.question_answering.graph import OWN, KnowledgeGraph, Linked, spoken
from jax_speechlm.apps.question_answering.reply import UNKNOWN, Reply
from jax_speechlm.apps.yaml_file import Place, YamlFile
from jax_speechlm.core.config import Config

SHIPPED = Path(__file__).parent
LEAST_SIMILAR = 0.8

_MOST_FORMS = 2000  # sentences of all templates
_LONGEST = 50  # words of a question
_ANSWER = "answer"
_SLOT = re.compile(r"\{(\w+)\}")

Form = tuple[str, ...]
"""A sentence of a template: words, and slots such as "{thing}"."""


class QuestionTemplate(Config):
    """Questions with one query.

    Attributes:
      ask: templates in hassil's format, whose slots are variables of the query. A slot named relation, or relation_2,
        is a relation of the graph, any other a thing.
      sparql: a SELECT of ?answer.
      say: a sentence with {answer} and slots.
    """

    ask: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    sparql: str
    say: str = "{answer}"


class QuestionTemplates(Config):
    """The content of a file of templates."""

    language: str = "en"
    prefixes: dict[str, str] = pydantic.Field(default_factory=dict)
    unknown: str = UNKNOWN
    questions: Annotated[tuple[QuestionTemplate, ...], pydantic.Field(min_length=1)]


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledTemplate:
    """A template with its sentences and its parsed query."""

    forms: tuple[Form, ...]
    query: Query
    say: str


class _Match(NamedTuple):
    template: CompiledTemplate
    fixed: int  # words of the sentence that are no slot's
    linked: dict[str, Linked]

    @property
    def similarity(self) -> float:
        return min((each.similarity for each in self.linked.values()), default=1.0)


def load_templates(name: str | Path) -> tuple[QuestionTemplates, tuple[CompiledTemplate, ...]]:
    """Reads templates of questions from a YAML file, or the shipped one, "general".

    Raises:
      DataError: it cannot be read, or a template or query does not hold; the message names file and line.
    """
    file = YamlFile.read(name, SHIPPED)
    declared = file.validated(QuestionTemplates)
    prefixes = {"": OWN} | declared.prefixes
    compiled = []
    for number, each in enumerate(declared.questions):
        place = ("questions", number)
        forms = [
            form
            for index, text in enumerate(each.ask)
            for form in _forms(text, declared.language, file, (*place, "ask", index))
        ]
        query = _parsed(each.sparql, prefixes, file, (*place, "sparql"))
        variables = set(map(str, query.algebra["_vars"]))
        for slots in ({*_slots(form)} for form in forms):
            if unused := slots - variables:
                raise file.error((*place, "sparql"), f"the query has no variable for the slot {min(unused)}")
            if unknown := {*_SLOT.findall(each.say)} - slots - {_ANSWER}:
                raise file.error((*place, "say"), f"{min(unknown)} is no slot of every question here")
        compiled.append(CompiledTemplate(tuple(dict.fromkeys(forms)), query, each.say))
    return declared, tuple(compiled)


class GraphAnswers:
    """Answers questions from a knowledge graph by templates."""

    def __init__(self, path: Path, templates: str | Path = "general", threshold: float | None = None):
        """
        Args:
          path: of the facts.
          threshold: least similarity of a name to what was asked; None is `LEAST_SIMILAR`.

        Raises:
          DataError: facts or templates cannot be read.
        """
        self.declared, self.templates = load_templates(templates)
        self.knowledge = KnowledgeGraph.load(path, self.declared.language)
        self.threshold = LEAST_SIMILAR if threshold is None else threshold
        self.method = f"{path.name}, {len(self.knowledge.graph):,} facts, {templates}, threshold {self.threshold:g}"

    def ask(self, question: str) -> Reply:
        """Answers a question by the query of the template that it fits best, of those with a result."""
        words = spoken(question, self.declared.language).split()
        matches = sorted(self._matches(words), key=lambda match: (-match.similarity, -match.fixed))
        for match in matches:
            if answer := self._answer(match):
                values = {name: linked.name for name, linked in match.linked.items()} | {_ANSWER: answer}
                say = _SLOT.sub(lambda slot, values=values: values[slot[1]], match.template.say)
                return Reply(answer, say, match.similarity, str(self.knowledge.path))
        return Reply(None, self.declared.unknown, matches[0].similarity if matches else 0.0)

    def _matches(self, words: Sequence[str]) -> Iterator[_Match]:
        if len(words) > _LONGEST:
            return
        links: dict[tuple[str, bool], Linked | None] = {}
        for template in self.templates:
            for form in template.forms:
                for slots in _fits(form, words):
                    linked = {}
                    for name, text in slots.items():
                        key = (text, name.partition("_")[0] == "relation")
                        if key not in links:
                            links[key] = self.knowledge.link(text, is_relation=key[1], threshold=self.threshold)
                        linked[name] = links[key]
                    if all(linked.values()):
                        yield _Match(template, len(form) - len(slots), linked)

    def _answer(self, match: _Match) -> str:
        """Returns the names of a query's results, in order; '' if there are none."""
        names = set()
        for nodes in itertools.product(*(linked.nodes for linked in match.linked.values())):
            bound = dict(zip(match.linked, nodes, strict=True))
            for row in self.knowledge.graph.query(match.template.query, initBindings=bound):
                if row[_ANSWER] is not None:
                    names.add(self.knowledge.name(row[_ANSWER]))
        return ", ".join(sorted(filter(None, names)))


def _forms(text: str, language: str, file: YamlFile, place: Place) -> Iterator[Form]:
    try:
        expression = hassil.parse_sentence(text, keep_text=True).expression
        sentences = list(itertools.islice(sample_expression(expression, expand_lists=False), _MOST_FORMS))
    except (ParseError, HassilError) as error:
        raise file.error(place, f"{text!r} is no template ({error})") from error
    if len(sentences) == _MOST_FORMS:
        raise file.error(place, f"{text!r} has {_MOST_FORMS:,} sentences or more: write it as several")
    for sentence in sentences:
        parts = _SLOT.split(sentence)  # text, slot, text, ...
        form = [
            word
            for number, part in enumerate(parts)
            for word in ([f"{{{part}}}"] if number % 2 else spoken(part, language).split())
        ]
        if len({*_slots(form)}) < len(_slots(form)) or len(_slots(form)) == len(form):
            raise file.error(place, f"{text!r} should have words besides slots, and each slot once")
        yield tuple(form)


def _slots(form: Sequence[str]) -> list[str]:
    return [part[1:-1] for part in form if part.startswith("{")]


def _fits(form: Sequence[str], words: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the ways in which a question is a sentence of a template: the words of each slot."""
    if not form:
        if not words:
            yield {}
        return
    first, rest = form[0], form[1:]
    if not first.startswith("{"):
        if words and words[0] == first:
            yield from _fits(rest, words[1:])
        return
    for end in range(1, len(words) - len(rest) + 1):
        for others in _fits(rest, words[end:]):
            yield {first[1:-1]: " ".join(words[:end])} | others


def _parsed(sparql: str, prefixes: dict[str, str], file: YamlFile, place: Place) -> Query:
    """Parses a query, which must select ?answer from the graph itself."""
    try:
        query = prepareQuery(sparql, initNs=prefixes)
    except Exception as error:  # which rdflib raises of an unknown prefix
        raise file.error(place, f"is no SPARQL: {error}") from error
    kinds: set[str] = set()
    traverse(query.algebra, visitPre=lambda node: kinds.add(str(getattr(node, "name", ""))))
    if query.algebra.name != "SelectQuery" or rdflib.Variable(_ANSWER) not in query.algebra["PV"]:
        raise file.error(place, "should be SELECT ?answer WHERE { ... }")
    if kinds & {"ServiceGraphPattern", "DatasetClause"}:
        raise file.error(place, "asks another place (FROM, SERVICE): only the graph itself is asked")
    return query
