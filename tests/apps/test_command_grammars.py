"""Grammars of commands accept what hassil accepts, name what is wrong with them, and find the nearest sentence."""

import functools

import hassil
import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from data_pipelines.core.errors import DataError
from jax_speechlm.apps.commands.grammar import Grammar, normal
from jax_speechlm.apps.commands.nearest import nearest_sentence

ORDERS = """\
language: en
intents:
  order:
    data:
      - sentences:
          - "[can i (get|have)|i want] [a] [{size}] {drink}[s] [with {milk} [and {sugar}]] [please]"
  light:
    data:
      - sentences: ["turn <how> {n}", "it's twenty-one"]
        slots: {device: light}
expansion_rules:
  how: "(the light;on;now)"
lists:
  size: {values: [small, large]}
  drink: {values: [latte, {in: "ice[d] coffee", out: iced coffee}]}
  milk: {values: [milk, a bit of milk]}
  sugar: {values: [sugar, half-fat sugar]}
  n: {range: {from: 19, to: 21}}
skip_words: [um]
"""
NEVER_ENDING = 'expansion_rules: {a: "x <b>", b: "<a>"}'


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return load(tmp_path_factory.mktemp("grammars"), ORDERS)


def sentences(words, state=0, said=()):
    """Yields the sentences of an automaton over words."""
    if state in words.final:
        yield " ".join(said)
    for word, target in words.arcs[state]:
        yield from sentences(words, target, (*said, word))


def load(folder, text):
    path = folder / "grammar.yaml"
    path.write_text(text)
    return Grammar.load(path)


def test_the_sentences_are_those_of_hassil(orders):
    compiled = list(sentences(orders.words))
    sampled = {normal(text, "en") for _, text in hassil.sample_intents(orders.intents, language="en")}
    assert set(compiled) == sampled
    assert len(compiled) == len(sampled) > 1000
    assert not orders.warnings


def test_every_sentence_is_understood(orders):
    assert all(orders.understand(sentence) for sentence in sentences(orders.words))
    said = "can i get a large iced coffee with a bit of milk and half fat sugar please"
    slots = {"size": "large", "drink": "iced coffee", "milk": "a bit of milk", "sugar": "half-fat sugar"}
    assert orders.understand(said) == ("order", slots)
    assert orders.understand("turn on now the light twenty one") == ("light", {"device": "light", "n": "21"})
    assert orders.understand("what a nice day") is None


def test_skip_words_stand_anywhere(orders):
    graph = orders.with_skip_words()

    def accepts(text):
        states = {0}
        for word in text.split():
            states = {target for state in states for label, target in graph.arcs[state] if label == word}
        return bool(states & graph.final)

    assert accepts("um can i um um get a latte um")
    assert orders.understand("um can i um um get a latte um") == ("order", {"drink": "latte"})
    assert not accepts("um")


def block(sentences, more=""):
    return f"language: en\nintents:\n  order:\n    data:\n      - sentences: {sentences}\n{more}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: should be an object"),
        ("intents: [1", "is not YAML"),
        ("language: en\nintents:\n  order: {}\n", 'line 3: the intent order has no "data"'),
        (block("[]"), "line 5: a block of order has no sentences"),
        (block('["a {size} latte"]'), "line 5: there is no list {size} under lists: nothing fills its slot"),
        (block('["a {size} latte"]', "lists:\n  size: {values: []}"), "line 7: the list {size} has no values"),
        (block('["a <size> latte"]'), "line 5: there is no rule <size>"),
        (block('["a", "<a>"]', NEVER_ENDING), "line 5: its rules refer to each other without end"),
        (block('["[a] [b]"]'), r"line 5: '\[a\] \[b\]' may be empty"),
        (block('["a (b"]'), r"line 5: 'a \(b' is no template"),
        (block('["play {song}"]', "lists:\n  song: {wildcard: true}"), "line 5: the wildcard {song} is any text"),
        (block('["a"]\n        requires_context: {area: b}'), "line 5: its sentences depend on a context"),
        (block('["({n};{n};{n};{n};{n};{n})"]', "lists: {n: {range: {from: 0, to: 99}}}"), "line 5: .* too large"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"grammar.yaml.*{message}"):
        load(tmp_path, text)


def test_a_missing_file_names_the_shipped_grammars():
    with pytest.raises(DataError, match="shipped ones are coffee"):
        Grammar.load("tea")


def test_parts_that_nothing_uses_are_named(tmp_path):
    grammar = load(tmp_path, block('["a b"]', 'lists:\n  size: {values: [x]}\nexpansion_rules: {c: "d"}'))
    assert [warning.partition(", ")[2] for warning in grammar.warnings] == [
        "line 7: no sentence uses the list {size}",
        "line 8: no sentence uses the rule <c>",
    ]


def test_the_shipped_grammar_reads_the_labels_of_the_coffee_set():
    coffee = Grammar.load("coffee")
    assert not coffee.warnings
    said = normal("May I have a dark roast, 8 ounce ice coffee with a lot of brown sugar?", "en")
    slots = {"coffeeDrink": "iced coffee", "roast": "dark roast", "size": "eight ounce"}
    assert coffee.understand(said) == ("orderDrink", slots | {"sugarAmount": "a lot of brown sugar"})
    assert nearest_sentence(said, coffee.words).similarity == 1


def edits(said, sentence):
    """The cost of a sentence by recursion over both, word by word."""

    @functools.cache
    def cost(i, j):
        if i == len(said) and j == len(sentence):
            return 0
        choices = [len(said[i]) + cost(i + 1, j)] if i < len(said) else []
        if j < len(sentence):
            choices.append(len(sentence[j]) + cost(i, j + 1))
            for end in range(i + 1, min(i + 3, len(said)) + 1):
                choices.append(Levenshtein.distance("".join(said[i:end]), sentence[j]) + cost(end, j + 1))
        return min(choices)

    return cost(0, 0)


@pytest.mark.parametrize(
    "text", ["", "a lar latty", "can i have ice tea coffee with bits of milk", "um i won't a small lat tay", "turn in"]
)
def test_the_nearest_sentence_has_the_fewest_edits(orders, text):
    said = tuple(text.split())
    costs = {sentence: edits(said, tuple(sentence.split())) for sentence in sentences(orders.words)}
    found = nearest_sentence(text, orders.words)
    least = min(costs.values())
    assert costs[found.sentence] == least
    letters = len((text + found.sentence).replace(" ", ""))
    np.testing.assert_allclose(found.similarity, 1 - least / letters)
