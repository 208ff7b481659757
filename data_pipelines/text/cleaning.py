"""Cleaning of text: named steps that a preparation applies in any order; dropped documents are counted by reason.

A step maps a stream of documents to a stream of documents, with `Dropped` in place of documents that it leaves out; it
passes on items that earlier steps dropped. Steps are generators, so the corpus may be of any size; only the two steps
that search for copies keep data of each document (about 100 bytes for exact copies, 2.5 kB for near ones).
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.text.documents import Document
from data_pipelines.text.near_duplicates import NearDuplicates, signature
from data_pipelines.text.normalize import lower, normalise, split_key, word_characters, words_only
from data_pipelines.text.numbers import UnspeakableError
from data_pipelines.text.personal_data import scrub
from data_pipelines.text.workers import CHUNK_CHARACTERS, Workers

StepName = Literal[
    "unicode",
    "language",
    "length",
    "exact",
    "near",
    "sentences",
    "personal",
    "spoken",
    "punctuation",
    "stop_words",
    "stem",
]
Items = Iterable[Document | Dropped]

_LANGUAGE_CHARACTERS = 2000  # used to identify the language
_SURE = 0.5  # least probability of an identified language
# The Snowball stemmers, by language code
_STEMMERS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian",
    "it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian", "pl": "polish",
    "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil",
    "tr": "turkish", "yi": "yiddish",
}  # fmt: skip
_PHRASE_WORDS = 5  # held-out sentences of at least this length are searched for within lines


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """Cleaning steps of a preparation, and their settings.

    Attributes:
      steps: in this order.
        unicode: NFKC; no control characters; single spaces; at most one blank line in a row.
        language: drops documents that are surely in another language than `languages`; adds the language to documents
          without one.
        length: drops documents outside `min_characters` to `max_characters`.
        exact: drops copies of earlier documents.
        near: drops documents that share `similarity` of their five-word shingles with an earlier one; keeps those
          with a target.
        sentences: makes every sentence a document; refuses documents with a target.
        personal: replaces addresses and numbers that identify persons, by `text.personal_data.scrub`.
        spoken: converts lines to their spoken form: lower case, numbers in words, no punctuation; drops lines with a
          number or sign without a known spoken form. After `sentences`, the result is like transcripts.
        punctuation: removes punctuation and symbols, except apostrophes within words.
        stop_words: removes the most common words of the document's language.
        stem: reduces words, in lower case, to their stems (Snowball), in the document's language; should follow
          `punctuation`, as words with a comma are not changed.
      languages: two-letter codes of the languages to keep; empty keeps all, or the languages of a named set.
      min_characters, max_characters: of a document, after the steps before `length`.
      similarity: least similarity of a near copy.
      held_out: prepared sets, for example of speech, whose sentences must not be trained on, except their train splits;
        "name:split" is one split. Before all steps, lines with such a sentence are removed: a sentence of five words or
        more anywhere, a shorter one if it is a whole line or, after `sentences`, a sentence.
    """

    steps: tuple[StepName, ...] = ("unicode", "language", "length", "exact", "near")
    languages: tuple[str, ...] = ()
    min_characters: int = 1
    max_characters: int = 10_000_000
    similarity: float = 0.8
    held_out: tuple[str, ...] = ()


def clean(
    items: Items,
    cleaning: Cleaning,
    sentences: Collection[str] = (),
    *,
    num_workers: int = 1,
    chunk_characters: int = CHUNK_CHARACTERS,
) -> Iterator[Document | Dropped]:
    """Applies the steps of `cleaning` to documents.

    Args:
      sentences: the texts of the sets in `cleaning.held_out`.
      chunk_characters: characters that a process receives at a time.

    Raises:
      DataError: a step is unknown or does not support the language of a document.
    """
    with Workers(num_workers, chunk_characters) as workers:
        rewrite = functools.partial(_rewrite, workers)
        known: dict[str, Callable[[Items], Iterator[Document | Dropped]]] = {
            "unicode": functools.partial(rewrite, tidy, "empty"),
            "language": functools.partial(_filter_language, workers, cleaning.languages),
            "length": functools.partial(_filter_length, cleaning.min_characters, cleaning.max_characters),
            "exact": _filter_exact,
            "near": functools.partial(_filter_near, workers, cleaning.similarity),
            "sentences": _split_sentences,
            "personal": functools.partial(_scrub, workers),
            "spoken": functools.partial(_speak, workers),
            "punctuation": functools.partial(rewrite, strip_punctuation, "nothing but punctuation"),
            "stop_words": functools.partial(rewrite, strip_stop_words, "nothing but stop words"),
            "stem": functools.partial(rewrite, stem, "empty"),
        }
        take_out = functools.partial(_take_out, _HeldOut(sentences)) if sentences else iter
        items = take_out(items)
        for name in cleaning.steps:
            if name not in known:
                raise DataError(f"--steps: no cleaning step is called {name!r}; known: {', '.join(known)}")
            items = known[name](items)
            if name == "sentences":
                items = take_out(items)  # only now short sentences are lines
        yield from items


def _rewrite(
    workers: Workers, function: Callable[[str, str], str], reason: str, items: Items
) -> Iterator[Document | Dropped]:
    """Applies `function(text, language)`; a document with an empty result is dropped for `reason`."""
    for item, text in workers.map(function, items):
        yield _with_text(item, text, reason) if isinstance(item, Document) else item


def _scrub(workers: Workers, items: Items) -> Iterator[Document | Dropped]:
    """Scrubs texts and targets."""
    for item, text in workers.map(scrub, items):
        if isinstance(item, Document):
            target = scrub(item.target, item.language) if item.target else ""
            item = _with_text(dataclasses.replace(item, target=target), text, "empty")
        yield item


def _with_text(document: Document, text: str, reason: str) -> Document | Dropped:
    return dataclasses.replace(document, text=text) if text else Dropped(document.id, reason)


def tidy(text: str, language: str = "") -> str:
    """Returns the text in NFKC with one kind of line end, printable characters, single spaces and single blank
    lines.
    """
    text = unicodedata.normalize("NFKC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.replace("\n", "").isprintable():  # spaces other than U+0020, control and format characters
        text = "".join(c if c == "\n" or c.isprintable() else _replacement(c) for c in text)
    lines = (re.sub(" {2,}", " ", line).strip() for line in text.split("\n"))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _replacement(character: str) -> str:
    if character in "\u2028\u2029\x0b\x0c\x85":
        return "\n"
    return " " if character.isspace() else ""


def _filter_language(workers: Workers, languages: tuple[str, ...], items: Items) -> Iterator[Document | Dropped]:
    if unknown := set(languages) - set(_identifier().labels):
        raise DataError(f"--languages: {', '.join(sorted(unknown))} cannot be told apart; use codes such as en, de, zh")
    for item, identified in workers.map(identify_language, items):
        if isinstance(item, Document):
            likely = identified[0] if identified[1] >= _SURE else ""
            if likely and languages and likely not in languages:
                item = Dropped(item.id, f"not in {', '.join(languages)}", detail=f"{item.id}: looks like {likely}")
            elif not item.language:
                item = dataclasses.replace(item, language=likely or (languages[0] if len(languages) == 1 else ""))
        yield item


def identify_language(text: str, language: str = "") -> tuple[str, float]:
    """Identifies the likeliest language from the beginning of a text; the argument `language` is ignored.

    Returns:
      A two- or three-letter code, and its probability.
    """
    return _identifier().classify(text[:_LANGUAGE_CHARACTERS])


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes a second to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _filter_length(least: int, most: int, items: Items) -> Iterator[Document | Dropped]:
    for item in items:
        if isinstance(item, Document):
            if len(item.text) < least:
                item = Dropped(item.id, f"shorter than {least:,} characters")
            elif len(item.text) > most:
                item = Dropped(item.id, f"longer than {most:,} characters")
        yield item


def _filter_exact(items: Items) -> Iterator[Document | Dropped]:
    seen: set[bytes] = set()
    for item in items:
        if isinstance(item, Document):
            both = f"{item.text}\0{item.target}" if item.target else item.text
            digest = hashlib.blake2b(both.encode(), digest_size=16).digest()
            if digest in seen:
                item = Dropped(item.id, "copy of an earlier document")
            else:
                seen.add(digest)
        yield item


def _filter_near(workers: Workers, similarity: float, items: Items) -> Iterator[Document | Dropped]:
    seen = NearDuplicates(similarity)
    for item, minima in workers.map(signature, items):
        if isinstance(item, Document) and not item.target and not seen.is_new(minima):
            item = Dropped(item.id, "nearly an earlier document")
        yield item


_SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?…])|(?<=[.!?…]["')\]]))(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St|vs|cf)\.)(?<!\b(?:Mrs|etc|e\.g|i\.e)\.)"""
    r"""\s+(?=["'(\[]*[A-Z0-9])"""
)


def _split_sentences(items: Items) -> Iterator[Document | Dropped]:
    for item in items:
        if isinstance(item, Dropped):
            yield item
            continue
        if item.target:
            raise DataError(
                f"{item.id}: --steps sentences divides documents, and this one has a target, which is of the whole: "
                "leave the step out"
            )
        for number, sentence in enumerate(split_sentences(item.text)):
            yield dataclasses.replace(item, id=f"{item.id}#{number}", text=sentence)


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences, each without line ends; a sentence ends with its paragraph, not with its line.

    A full stop, question or exclamation mark before a capital ends a sentence, except after initials and a few English
    abbreviations. Verses on lines are split correctly if each ends or begins in this way.
    """
    paragraphs = re.split(r"\n\s*\n", text)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split()))
        if sentence
    ]


def _speak(workers: Workers, items: Items) -> Iterator[Document | Dropped]:
    for item, lines in workers.map(spoken_lines, items):
        if isinstance(item, Dropped):
            yield item
            continue
        for number, line in enumerate(lines):
            if isinstance(line, UnspeakableError):
                reason = "line with a number or sign without spoken form"
                yield Dropped(f"{item.id}, line {number}", reason, detail=str(line))
        text = "\n".join(line for line in lines if isinstance(line, str) and line)
        yield _with_text(item, text, "nothing to say")


def spoken_lines(text: str, language: str) -> list[str | UnspeakableError]:
    """Returns the spoken form of each line, or the error of a line with a number or sign of unknown spoken form."""

    def spoken(line: str) -> str | UnspeakableError:
        try:
            return normalise(line, language)
        except UnspeakableError as error:
            return error

    return [spoken(line) for line in text.split("\n")]


def strip_punctuation(text: str, language: str = "") -> str:
    """Returns the text without punctuation and symbols, except apostrophes within words."""
    return _join_words("\n".join(map(word_characters, text.split("\n"))))


def strip_stop_words(text: str, language: str) -> str:
    """Returns the text without the most common words of its language."""
    stop_words = _stop_words(language)
    return _join_words(
        text,
        lambda word: (
            "" if lower(word, language).casefold().replace("\u2019", "'").strip('.,;:!?"()[]') in stop_words else word
        ),
    )


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    import stop_words

    try:
        return frozenset(stop_words.get_stop_words(language))
    except stop_words.StopWordError as error:
        raise DataError(_language_remedy("stop_words", language)) from error


def stem(text: str, language: str) -> str:
    """Returns the words in lower case, reduced to their stems by the Snowball stemmer of the language."""
    stemmer = _stemmer(language)
    return _join_words(text, lambda word: stemmer.stemWord(lower(word, language)))


@functools.cache
def _stemmer(language: str) -> Any:
    import snowballstemmer

    if language not in _STEMMERS:
        raise DataError(_language_remedy("stem", language))
    return snowballstemmer.stemmer(_STEMMERS[language])


def _language_remedy(step: str, language: str) -> str:
    text = f"the language {language!r}" if language else "a document whose language is unknown"
    return f"--steps: {step} cannot treat {text}; put the step language before it and name --languages, or leave it out"


def _join_words(text: str, change: Callable[[str], str] = str) -> str:
    """Returns the text with every word changed, without empty words, with the same lines."""
    lines = (" ".join(filter(None, map(change, line.split()))) for line in text.split("\n"))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _take_out(held_out: "_HeldOut", items: Items) -> Iterator[Document | Dropped]:
    for item in items:
        if isinstance(item, Dropped):
            yield item
            continue
        if item.target and held_out.lines(item.target.split("\n"), ""):
            yield Dropped(item.id, "target with a held-out sentence", detail=item.target[:200])
            continue
        lines = item.text.split("\n")
        held = held_out.lines(lines, item.language)
        if not held:
            yield item
            continue
        for number in sorted(held):
            yield Dropped(f"{item.id}, line {number}", "line with a held-out sentence", detail=lines[number][:200])
        text = "\n".join(line for number, line in enumerate(lines) if number not in held).strip("\n")
        yield _with_text(item, text, "nothing but held-out sentences")


class _HeldOut:
    """Sentences, indexed by their first words, so that one pass over a text finds all of them."""

    def __init__(self, sentences: Collection[str]):
        self._whole: set[tuple[str, ...]] = set()
        self._phrases: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for words in {tuple(_words(sentence)) for sentence in sentences}:
            if len(words) >= _PHRASE_WORDS:
                self._phrases.setdefault(words[:_PHRASE_WORDS], []).append(words)
            elif words:
                self._whole.add(words)

    def lines(self, lines: list[str], language: str) -> set[int]:
        """Returns the numbers of the lines with a held-out sentence or a part of one that continues over line ends."""
        words: list[str] = []
        line_of: list[int] = []
        held = set()
        for number, line in enumerate(lines):
            line_words = _spoken_words(line, language)
            if tuple(line_words) in self._whole:
                held.add(number)
            words += line_words
            line_of += [number] * len(line_words)
        for start in range(len(words) - _PHRASE_WORDS + 1):
            for phrase in self._phrases.get(tuple(words[start : start + _PHRASE_WORDS]), ()):
                if tuple(words[start : start + len(phrase)]) == phrase:
                    held.update(line_of[start : start + len(phrase)])
        return held


def _spoken_words(line: str, language: str) -> list[str]:
    """Returns the words to compare, with numbers in words as in transcripts if their spoken form is known."""
    try:
        return _words(normalise(line, language))
    except UnspeakableError:
        return _words(line)


def _words(text: str) -> list[str]:
    """Returns words that are the same before and after `normalise`, for every language."""
    return split_key(words_only(text)).replace("\u0131", "i").split()
