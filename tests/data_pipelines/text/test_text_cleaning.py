"""Cleaning steps: what each changes, what it leaves out, and that both are counted."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.text import near_duplicates
from data_pipelines.text.cleaning import Cleaning, clean, split_sentences, tidy
from data_pipelines.text.documents import Document

ENGLISH = "The house by the river was sold in the spring, and nobody in the village knew who had bought it."
GERMAN = "Das Haus am Fluss wurde im Frühling verkauft, und niemand im Dorf wusste, wer es gekauft hatte."


def run(texts, *steps, language="en", sentences=(), **options):
    """Texts kept by id, and (id, reason) of what was dropped."""
    documents = [Document(str(number), text, language) for number, text in enumerate(texts)]
    items = list(clean(documents, Cleaning(steps=steps, **options), sentences))
    kept = {item.id: item.text for item in items if isinstance(item, Document)}
    return kept, [(item.id, item.reason) for item in items if isinstance(item, Dropped)]


def words(count, seed):
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefghij", k=5)) for _ in range(count)]


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tidy_text_stays_as_it_is(text):
    once = tidy(text)
    assert tidy(once) == once == unicodedata.normalize("NFKC", once)
    assert all(c == "\n" or c.isprintable() for c in once)
    assert "  " not in once
    assert "\n\n\n" not in once
    assert all(line == line.strip() for line in once.split("\n"))


def test_unicode_step():
    kept, dropped = run(["a\r\nb\t  c\x07\ufeff\n\n\n\nd\u2028e ﬁn\u00ad", "\u200b \n"], "unicode")
    assert kept == {"0": "a\nb c\n\nd\ne fin"}
    assert dropped == [("1", "empty")]


def test_language_step_drops_only_what_is_surely_foreign_and_fills_in_what_is_missing():
    kept, dropped = run([ENGLISH, GERMAN, "42 %"], "language", languages=("en",))
    assert list(kept) == ["0", "2"]
    assert dropped == [("1", "not in en")]
    items = list(clean([Document("a", GERMAN), Document("b", "?")], Cleaning(steps=("language",))))
    assert [item.language for item in items] == ["de", ""]


def test_length_step():
    kept, dropped = run(["ab", "abc", "abcdef"], "length", min_characters=3, max_characters=5)
    assert list(kept) == ["1"]
    assert [reason for _, reason in dropped] == ["shorter than 3 characters", "longer than 5 characters"]


def test_exact_step_keeps_the_first():
    kept, dropped = run(["a b", "a  b", "a b", "A b"], "exact")
    assert list(kept) == ["0", "1", "3"]
    assert dropped == [("2", "copy of an earlier document")]
    assert list(run(["a b", "a  b"], "unicode", "exact")[0]) == ["0"]  # steps act in their order


def test_near_step_drops_copies_with_small_changes_and_keeps_what_differs():
    text = words(300, 0)
    changed = [*text]
    changed[100] = "new"  # 5 of 296 shingles: similarity 0.97
    half = text[:150] + words(150, 1)  # similarity 1/3
    short, other = "one two three four", "one two three five"
    texts = [" ".join(text), " ".join(changed), " ".join(half), " ".join(text).upper() + "!", short, other, short + "."]
    kept, dropped = run(texts, "near")
    assert list(kept) == ["0", "2", "4", "5"]
    assert [name for name, _ in dropped] == ["1", "3", "6"]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_signatures_estimate_the_similarity(share):
    """Disjoint vocabularies joined: the Jaccard index of their shingles is known exactly."""
    common, size = words(2000, 2), 2000
    rest = round(size * (1 - share) / share / 2)
    texts = [" ".join(common + words(rest, seed)) for seed in (3, 4)]
    sets = [{tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in texts]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    agreeing = (near_duplicates.signature(texts[0]) == near_duplicates.signature(texts[1])).mean()
    assert abs(agreeing - exact) < 4 * (exact * (1 - exact) / 128) ** 0.5


def test_sentences_step():
    text = 'He came. "Did she?" He asked Mr. Smith of the U.S. Army, e.g. twice.\nShe\nran! (Never.) It cost 3.50 here.'
    text += "\n\nThe end"
    assert split_sentences(text) == [
        "He came.",
        '"Did she?"',
        "He asked Mr. Smith of the U.S. Army, e.g. twice.",
        "She ran!",
        "(Never.)",
        "It cost 3.50 here.",
        "The end",
    ]
    kept, _ = run(["One. Two."], "sentences")
    assert kept == {"0#0": "One.", "0#1": "Two."}


def test_spoken_step_writes_what_is_said_and_counts_the_lines_without_a_spoken_form():
    kept, dropped = run(["Press 1, or wait.\nIt was 1940's best.\nHello - World!", "100 %"], "spoken")
    assert kept == {"0": "press one or wait\nhello world"}
    assert dropped[0] == ("0, line 1", "line with a number or sign without spoken form")
    assert ("1", "nothing to say") in dropped


def test_steps_for_word_vectors():
    kept, dropped = run(
        ["The runners, it's said, were running!\n-- to \u201cthe\u201d houses", "...", "it is"], "punctuation"
    )
    assert kept == {"0": "The runners it's said were running\nto the houses", "2": "it is"}
    assert dropped == [("1", "nothing but punctuation")]
    kept, dropped = run(["The runners painted it all over the houses", "it is"], "stop_words", "stem")
    assert kept == {"0": "runner paint hous"}
    assert dropped == [("1", "nothing but stop words")]
    assert run(["Die Häuser"], "stem", language="de")[0] == {"0": "die haus"}


@pytest.mark.parametrize("step", ["stop_words", "stem"])
@pytest.mark.parametrize("language", ["", "xx"])
def test_steps_that_do_not_know_the_language_say_so(step, language):
    with pytest.raises(DataError, match=f"--steps: {step} cannot treat"):
        run(["text"], step, language=language)


def test_held_out_sentences_are_taken_out_wherever_they_stand():
    sentences = ["please hold on the line now", "press one", "yes"]
    texts = [
        "He said: Please, hold on the\nline -- NOW! And left.\nA third line.",
        "Press 1\nPress one or two.\nYes.",
        "please hold on the line then",
        "yes",
        "",
    ]
    kept, dropped = run(texts, sentences=sentences)
    assert kept == {"0": "A third line.", "1": "Press one or two.", "2": texts[2], "4": ""}
    reasons = [reason for _, reason in dropped]
    assert reasons.count("line with a held-out sentence") == 2 + 2 + 1
    assert reasons.count("nothing but held-out sentences") == 1
    assert run(["It rang. Yes. He left."], "sentences", sentences=sentences)[0] == {
        "0#0": "It rang.",
        "0#2": "He left.",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ("english",)}, "--languages: english cannot be told"),
        ({"similarity": 0.3}, "--similarity 0.3 is"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(DataError, match=message):
        run([ENGLISH], "language", "near", **options)


def test_unknown_step():
    with pytest.raises(DataError, match="no cleaning step is called 'lowercase'; known: unicode, language"):
        run(["a"], "lowercase")


def test_processes_give_the_same_in_the_same_order():
    texts = [f"{' '.join(words(30, number // 2))}. Page {number}." for number in range(60)]
    texts[7], texts[9] = "", "1940's"
    documents = [Document(str(number), text, "en") for number, text in enumerate(texts)]
    documents.insert(40, Dropped("x", "before"))
    cleaning = Cleaning(steps=("unicode", "near", "sentences", "spoken"))
    alone, together = (list(clean(documents, cleaning, num_workers=n, chunk_characters=500)) for n in (1, 2))
    assert [vars(item) for item in together] == [vars(item) for item in alone]
    assert {item.reason for item in alone if isinstance(item, Dropped)} >= {
        "before",
        "empty",
        "nearly an earlier document",
    }
