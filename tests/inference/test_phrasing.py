"""Replies that a language model phrases: what counts as saying the same, and what is taken."""

from types import SimpleNamespace

import pytest

from jax_speechlm.apps.commands.understanding import of_text
from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.session import Session
from jax_speechlm.inference.lm.generation import Continuation
from jax_speechlm.inference.lm.phrasing import Phrasing, says_the_same

VALUES = ("milk", "soy milk", "latte", "large", "small")
REPLY = "One large latte with soy milk, 2 euros. Is that right?"


@pytest.mark.parametrize(
    ("phrasing", "holds"),
    [
        (REPLY, True),
        ("That is 2 euros for a LARGE latte, with soy milk, right?", True),
        ("That is 2 euros for a latte with soy milk, right?", False),  # a value is missing
        ("2 euros: a large latte with soy milk and milk, right?", False),  # a value that was not said
        ("2 euros: a large latte with milk, right?", False),  # another value
        ("3 euros: a large latte with soy milk, right?", False),
        ("2 euros: a large latte with soy milk.", False),  # it no longer asks
        ("2 euros: a large latte, soy milk, right? Or small?", False),
        ("a large smallish latte with soy milk, 2 euros, right?", True),  # a value is a whole word
        ("", False),
        (REPLY + " yes" * 30, False),
    ],
)
def test_a_phrasing_names_what_the_reply_names(phrasing, holds):
    assert says_the_same(REPLY, phrasing, VALUES) == holds


def model(*drawn: tuple[str, float, bool]) -> SimpleNamespace:
    """A model that always draws these texts, of so many nats, ended or not, and keeps its prompts."""
    prompts = []

    def generate(asked, sampling, *, max_tokens, samples):
        prompts.extend(asked)
        assert samples == 4
        return [[Continuation(text, log_prob, 10, ended) for text, log_prob, ended in drawn]]

    return SimpleNamespace(generate=generate, prompts=prompts)


def phrasing_of(*drawn: tuple[str, float, bool]) -> Phrasing:
    return Phrasing(model(*drawn), "again: {reply}")


def test_the_likeliest_that_holds_is_taken():
    phrasing = phrasing_of(
        (" A small latte?", -1.0, True),
        (" Which size, large?\nAnd then", -3.0, False),
        (" A large one?", -5.0, True),
        (" large?", -2.0, False),  # cut off
    )
    assert phrasing.of("Do you want it large?", VALUES) == "Which size, large?"
    assert phrasing.model.prompts == ["again: Do you want it large?"]
    assert phrasing.of("Good bye.", VALUES) == "Good bye."  # every drawn text asks
    assert phrasing.of("", VALUES) == ""


def test_a_conversation_is_phrased_and_goes_on_as_before():
    script = Script.load("coffee")
    assert {"small", "medium", "large"} <= script.values
    plain, phrased = Session(script), Session(script, phrasing_of((" What size: small, medium, or large?", -1.0, True)))
    assert plain.start() == phrased.start()
    for said in ("a latte please", "large"):
        expected = plain.reply_to(of_text(said, plain.expected))
        reply = phrased.reply_to(of_text(said, phrased.expected))
        assert reply == ("What size: small, medium, or large?" if "medium" in expected else expected)
        assert phrased.state() == plain.state()


def test_a_prompt_without_the_reply_is_refused():
    with pytest.raises(ValueError, match="needs"):
        Phrasing(model(), "say it nicely")
