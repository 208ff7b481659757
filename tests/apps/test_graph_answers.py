"""Answers from graphs of facts by templates of questions."""

import re
import urllib.request

import pytest
import rdflib

from data_pipelines.core.errors import DataError
from jax_speechlm.apps.question_answering.graph import KnowledgeGraph
from jax_speechlm.apps.question_answering.templates import GraphAnswers, load_templates

FACTS = """\
subject,relation,object
Quicksort,inventor,Tony Hoare
Quicksort,year,1959
Merge sort,inventor,John von Neumann
Tony Hoare,born in,Colombo
Tony Hoare,child,Ann
Tony Hoare,child,Bob
Gulliver's Travels,author,Jonathan Swift
"Nineteen Eighty-Four",author,George Orwell
Quicksort,definition,A sorting algorithm that divides and conquers.
"""
TURTLE = """\
@prefix : <http://example.org/> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
:nile rdfs:label "the Nile" , "Nil"@de ; :lengthInKilometres 6650 ; :flowsThrough :egypt , :sudan .
:egypt :capital :cairo . :sudan rdfs:label "Sudan" ; :capital [ rdfs:label "Khartoum" ] .
:egypt :mayor [] .
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    (folder / "facts.csv").write_text(FACTS)
    (folder / "rivers.ttl").write_text(TURTLE)
    return folder


@pytest.fixture(scope="module")
def facts(folder):
    return GraphAnswers(folder / "facts.csv")


@pytest.mark.parametrize(
    ("question", "answer", "say"),
    [
        ("Who is the inventor of Quicksort?", "Tony Hoare", "The inventor of Quicksort is Tony Hoare."),
        ("who was the inventer of quick sort", "Tony Hoare", "The inventor of Quicksort is Tony Hoare."),
        ("What is the year of quicksort?", "1959", "The year of Quicksort is 1959."),
        ("Who has the child Bob?", "Tony Hoare", "Tony Hoare"),
        ("How many child has Tony Hoare?", "2", "2"),
        ("who are the child of tony hoare", "Ann, Bob", "The child of Tony Hoare is Ann, Bob."),
        (
            "Who is the author of Gulliver\u2019s Travels?",
            "Jonathan Swift",
            "The author of Gulliver's Travels is Jonathan Swift.",
        ),
        ("who is gulliver's travels's author", "Jonathan Swift", None),
        ("who was the author of nineteen eighty four", "George Orwell", None),
        ("What is quicksort?", "A sorting algorithm that divides and conquers.", None),
    ],
)
def test_questions_are_answered_from_facts(facts, question, answer, say):
    reply = facts.ask(question)
    assert reply.answer == answer
    assert say in (None, reply.say)
    assert reply.source.endswith("facts.csv")
    assert facts.ask(question) == reply


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?",
        "Who is the inventor of heap sort?",  # no such thing
        "Who is the colour of quicksort?",  # no such relation
        "Who is the author of Quicksort?",  # no such fact
        "Quicksort?",  # no such template
        "who is the inventor of quicksort " + "and quicksort " * 40,
    ],
)
def test_what_is_not_known_is_not_answered(facts, question):
    reply = facts.ask(question)
    assert (reply.answer, reply.say) == (None, "I do not know.")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the length in kilometres of the Nile?", "6650"),
        ("what is the length in kilometers of nil", "6650"),
        ("what is the capital of egypt", "cairo"),
        ("what is the capital of Sudan", "Khartoum"),
        ("what flows through Sudan", "the Nile"),
        ("who is the mayor of egypt", None),  # somebody without a name
        ("what has the length in kilometres 6650", "the Nile"),
    ],
)
def test_turtle_is_asked_by_labels_or_by_the_ends_of_names(folder, question, answer):
    assert GraphAnswers(folder / "rivers.ttl").ask(question).answer == answer


def test_similar_names_are_found_as_far_as_the_threshold_says(folder):
    graph = KnowledgeGraph.load(folder / "facts.csv")
    linked = graph.link("quick sort", is_relation=False, threshold=0.8)
    # by hand: one character of 9 + 10 to delete
    assert (linked.name, linked.similarity) == ("Quicksort", pytest.approx(1 - 1 / 19))
    assert graph.link("quick sort", is_relation=False, threshold=0.95) is None
    assert graph.link("quicksort", is_relation=True, threshold=0.8) is None


INJECTIONS = [
    "quicksort> ?p ?o } ; DROP ALL ; SELECT ?answer WHERE { ?s ?p ?answer",
    '" } INSERT DATA { <urn:a> <urn:b> <urn:c> } #',
    "quicksort . ?answer ?b ?c",
    "<urn:knowledge:Quicksort>",
    "{thing}",
    "{{ 7 * 7 }} {% for x in y %}",
    "{answer.__class__}",
    "$(touch owned) `touch owned` ; rm -rf .",
    "[thing|(answer)] <rule>",
    "\\u0022 \\ % \x00 \x1b[2J",
]


@pytest.mark.parametrize("injected", INJECTIONS)
def test_nothing_that_is_asked_becomes_part_of_a_query_or_template(folder, injected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    answers = GraphAnswers(folder / "facts.csv")
    before, queries, run = set(answers.knowledge.graph), [], rdflib.Graph.query

    def recorded(self, query, *args, **options):
        queries.append(query)
        return run(self, query, *args, **options)

    monkeypatch.setattr(rdflib.Graph, "query", recorded)
    for question in (
        injected,
        f"who is the inventor of {injected}",
        f"what is {injected}",
        f"who {injected} quicksort",
    ):
        reply = answers.ask(question)
        assert (reply.answer, reply.say) == (None, "I do not know.")
    assert {id(query) for query in queries} <= {id(template.query) for template in answers.templates}
    assert set(answers.knowledge.graph) == before
    assert not list(tmp_path.iterdir())


def test_names_in_a_graph_are_shown_and_never_filled_in(tmp_path):
    (tmp_path / "f.csv").write_text('a,is,{thing} {{ 7 * 7 }}\n"b"" } #",is,"x\' ?y"\n')
    answers = GraphAnswers(tmp_path / "f.csv")
    assert answers.ask("what is a").answer == "{thing} {{ 7 * 7 }}"
    reply = answers.ask("what is the is of b")
    assert (reply.answer, reply.say) == ("x' ?y", "The is of b\" } # is x' ?y.")


TEMPLATES = """\
prefixes: {ex: "http://example.org/"}
unknown: No idea.
questions:
  - ask: ["which river reaches {land}", "what reaches (country;{land})"]
    sparql: "SELECT ?answer WHERE { ?answer ex:flowsThrough ?land }"
    say: "{land} has {answer}."
"""


def test_templates_of_ones_own(folder, tmp_path):
    (tmp_path / "t.yaml").write_text(TEMPLATES)
    answers = GraphAnswers(folder / "rivers.ttl", tmp_path / "t.yaml")
    assert answers.ask("Which river reaches Egypt?").say == "egypt has the Nile."
    assert answers.ask("what reaches sudan country").say == "Sudan has the Nile."
    assert answers.ask("what is the capital of egypt").say == "No idea."


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("ex:flowsThrough", "foo:flowsThrough", 5, "is no SPARQL: Unknown namespace"),
        ("?land }", "?land", 5, "is no SPARQL"),
        ("SELECT ?answer", "SELECT ?land", 5, "should be SELECT ?answer"),
        ("SELECT ?answer WHERE { ?answer ex:flowsThrough ?land }", "ASK { ?answer ?b ?land }", 5, "should be SELECT"),
        ("SELECT ?answer WHERE { ?answer ex:flowsThrough ?land }", "DROP ALL", 5, "is no SPARQL"),
        ("WHERE {", "FROM <http://example.org/x> WHERE {", 5, "another place"),
        ("?land }", "?land SERVICE <http://example.org/x> { ?answer ?b ?c } }", 5, "another place"),
        ("?land }", "?country }", 5, "no variable for the slot land"),
        ("{land} has", "{lake} has", 6, "lake is no slot"),
        ("which river reaches {land}", "{land}", 4, "words besides slots"),
        ("which river reaches {land}", "is {land} {land}", 4, "each slot once"),
        ("which river reaches {land}", "which (river reaches {land}", 4, "is no template"),
        ("which river reaches {land}", "<rule> reaches {land}", 4, "is no template"),
        ("which river reaches {land}", "[a] [b] [c] [d] [e] [f] [g] [h] [i] [j] [k] x {land}", 4, "2,000 sentences"),
        ("sparql:", "query:", 4, "has no setting 'query'"),
        ("questions:", "asked:", 1, "has no setting 'asked'"),
    ],
)
def test_errors_of_templates_name_the_line(tmp_path, old, new, line, message, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: pytest.fail("reads from the network"))
    assert old in TEMPLATES
    (tmp_path / "t.yaml").write_text(TEMPLATES.replace(old, new, 1))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_templates(tmp_path / "t.yaml")
    named = int(re.search(r"t\.yaml, line (\d+)", str(caught.value))[1])
    assert named in (line, 1, 3)  # or that of the part that holds it


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", "", "has no facts"),
        ("f.csv", "subject,relation,object\n", "has no facts"),
        ("f.csv", "a,b,c\n\na,b\n", "f.csv, line 3: should be subject,relation,object"),
        ("f.csv", "a,,c\n", "f.csv, line 1: should be"),
        ("f.csv", b"a,b,\xff\n", "not UTF-8"),
        ("f.ttl", "", "has no facts"),
        ("f.ttl", "a b c", "is not Turtle: at line 1"),
        ("f.ttl", "@prefix : <http://x/> . :a :b", "is not Turtle"),
        ("f.rdf", "<rdf/>", "name a .csv or .ttl"),
    ],
)
def test_errors_of_facts_name_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        GraphAnswers(tmp_path / name)
    assert name in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises((DataError, FileNotFoundError), match=r"none\.csv"):
        GraphAnswers(tmp_path / "none.csv")


def test_the_order_of_facts_changes_nothing(tmp_path):
    rows = FACTS.splitlines()[1:]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    (tmp_path / "b.csv").write_text("\n".join(rows[::-1]))
    both = [GraphAnswers(tmp_path / name) for name in ("a.csv", "b.csv")]
    for question in ("who are the child of tony hoare", "what is the born in of tony hoare", "who has the child ann"):
        one, other = (answers.ask(question) for answers in both)
        assert one[:3] == other[:3] != (None, "I do not know.", 0.0)
