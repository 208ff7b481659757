"""Knowledge graphs: files of facts, and the things in them by their names."""

import csv
import dataclasses
import functools
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import rapidfuzz
import rdflib
from rdflib.namespace import FOAF, RDFS, SKOS
from rdflib.term import Node

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from jax_speechlm.apps.commands.grammar import normal

OWN = "urn:knowledge:"
"""Namespace of the things and relations of CSV files: the prefix `:` of templates."""

FACTS = (".csv", ".ttl")
_NAMES = (RDFS.label, SKOS.prefLabel, FOAF.name, SKOS.altLabel)  # the first that a thing has is shown
_LONGEST_NAME = 100  # characters of a value by which things are looked up
_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_-]+")


class Linked(NamedTuple):
    """Things of a graph with one name, the name as it is shown, and its similarity to what was asked."""

    nodes: tuple[Node, ...]
    name: str
    similarity: float


@dataclasses.dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts.

    Attributes:
      path: their file.
      language: two-letter code, of the spoken form of names.
    """

    path: Path
    graph: rdflib.Graph
    language: str

    @classmethod
    def load(cls, path: Path, language: str = "en") -> "KnowledgeGraph":
        """Reads facts: CSV with the columns subject, relation and object, or Turtle.

        Raises:
          DataError: the file cannot be read, or has no facts; the message names the line.
        """
        if path.suffix.lower() not in FACTS:
            raise DataError(f"{path}: is no file of facts: name a .csv or .ttl")
        try:
            graph = _of_csv(path) if path.suffix.lower() == ".csv" else _of_turtle(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if not len(graph):
            raise DataError(f"{path}: has no facts: write some, as subject,relation,object or in Turtle")
        return cls(path, graph, language)

    def name(self, node: Node) -> str:
        """Returns how a thing is shown: its label, or the words of the end of its IRI; '' of one without a name."""
        return self._names_of(node)[0]

    def link(self, text: str, *, is_relation: bool, threshold: float) -> Linked | None:
        """Finds the things whose name is nearest to a text, of those that are similar enough.

        Args:
          text: words as of `grammar.normal`.
          is_relation: finds relations; otherwise what relations join.
          threshold: least similarity, in [0, 1]: 1 less the characters to insert and delete, as a share of both.
        """
        nodes_by_name = self._relations if is_relation else self._things
        found = rapidfuzz.process.extractOne(
            text, nodes_by_name.keys(), scorer=rapidfuzz.fuzz.ratio, score_cutoff=100 * threshold
        )
        if found is None:
            return None
        nodes = nodes_by_name[found[0]]
        return Linked(nodes, self.name(nodes[0]), found[1] / 100)

    @functools.cached_property
    def _things(self) -> Mapping[str, tuple[Node, ...]]:
        facts = [(subject, value) for subject, relation, value in self.graph if relation not in _NAMES]
        return self._by_name({node for pair in facts for node in pair})

    @functools.cached_property
    def _relations(self) -> Mapping[str, tuple[Node, ...]]:
        return self._by_name({relation for relation in self.graph.predicates() if relation not in _NAMES})

    def _by_name(self, nodes: set[Node]) -> Mapping[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {}
        for node in sorted(nodes, key=str):  # the same order in every process
            for name in dict.fromkeys(spoken(name, self.language) for name in self._names_of(node)):
                if name and len(name) <= _LONGEST_NAME:
                    found.setdefault(name, []).append(node)
        return {name: tuple(found[name]) for name in sorted(found)}

    def _names_of(self, node: Node) -> list[str]:
        if isinstance(node, rdflib.Literal):
            return [str(node)]
        labels = [str(name) for kind in _NAMES for name in sorted(self.graph.objects(node, kind), key=self._preferred)]
        if labels or not isinstance(node, rdflib.URIRef):
            return labels or [""]
        end = urllib.parse.unquote(re.split(r"[/#:]", str(node).rstrip("/#:"))[-1])
        return [" ".join(_WORD_BORDER.sub(" ", end).split())]

    def _preferred(self, name: Node) -> tuple[bool, str]:
        """Returns a key that sorts names in other languages last."""
        return getattr(name, "language", None) not in (None, self.language), str(name)


def spoken(text: str, language: str) -> str:
    """Returns the words of a text as of `grammar.normal`, with an English genitive as a word of its own."""
    return re.sub(r"'s\b", " s", normal(text.replace("\u2019", "'"), language))


def _of_csv(path: Path) -> rdflib.Graph:
    graph, columns = rdflib.Graph(), ["subject", "relation", "object"]
    reader = csv.reader(line + "\n" for _, line in text_lines(path))
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if not any(values) or (reader.line_num == 1 and [value.lower() for value in values] == columns):
                continue
            if len(values) != 3 or not all(values):
                raise DataError(f"{path}, line {reader.line_num}: should be subject,relation,object and is {row}")
            nodes = [rdflib.URIRef(OWN + urllib.parse.quote(value.replace(" ", "_"), safe="")) for value in values]
            graph.add(tuple(nodes))
            for node, value in zip(nodes, values, strict=True):
                graph.add((node, RDFS.label, rdflib.Literal(value)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: is not CSV ({error})") from error
    return graph


def _of_turtle(path: Path) -> rdflib.Graph:
    text = "\n".join(line for _, line in text_lines(path))
    try:
        return rdflib.Graph().parse(data=text, format="turtle")
    except Exception as error:  # rdflib's parser raises IndexError and others of a file that is cut short
        raise DataError(f"{path}: is not Turtle: {' '.join(str(error).split())}") from error
