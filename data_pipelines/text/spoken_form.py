"""Text as it is read aloud: numbers, abbreviations and signs in words, for speech synthesis.

Unlike `normalize.normalise`, which makes recognition targets, this keeps case and the punctuation that decides pauses
and intonation, and knows ordinals, dates, times, money and so on in English. The result has letters and marks of any
script, spaces, line ends, apostrophes and hyphens within words, and the marks `.,;:?!`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.text.numbers import UnspeakableError, primary, say_numbers
from data_pipelines.text.spoken_english import in_english

PAUSES = ".,;:?!"
_SIMILAR = {"!": ".?", "?": ".!", ".": "!?", ";": ",:", ":": ",;", ",": ";:"}
_STRONGEST = "?!.;:,"  # what remains of several marks in a row
_PLAIN = str.maketrans(
    "\u2018\u2019\u02bc\u201b\uff07\u201c\u201d\u201e\u00ab\u00bb\u2010\u2011\u2012\u2015\u2212\u2044\u2215\u2022",
    "'''''\"\"\"\"\"---\u2014-//,",
)
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "0123456789")
_POWER = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,12}")
_GROUPING_SPACE = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")  # thin or unbreakable
_FRACTION = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e])")
_MARKS = re.compile(rf" ?[{PAUSES}](?: ?[{PAUSES}])*")
_SHOWN = 10


class Reading(NamedTuple):
    """A text as it is read aloud.

    Attributes:
      text: its words; parts without words are left out.
      unspoken: these parts, characters or numerals, once each, in order.
    """

    text: str
    unspoken: tuple[str, ...]


class UnspokenError(UnspeakableError, DataError):
    """A text has parts that cannot be read aloud; `parts` are these, once each, in order.

    The user can act on it, so the command line prints the message alone.
    """

    def __init__(self, parts: Iterable[str], reason: str, remedy: str):
        self.parts = tuple(parts)
        shown = ", ".join(map(_named, self.parts[:_SHOWN]))
        more = f" and {len(self.parts) - _SHOWN} more" if len(self.parts) > _SHOWN else ""
        super().__init__(f"{reason}: {shown}{more}; {remedy}")


def spoken_form(text: str, language: str = "en") -> str:
    """Returns a text as it is read aloud; a text of plain words is unchanged.

    Args:
      language: two-letter code. English has rules for numbers of every kind, abbreviations, initialisms, signs, e-mail
        addresses and URLs; other languages have the whole and decimal numbers of `numbers.say_numbers`.

    Raises:
      UnspokenError: it has emoji, signs or numerals without words in this language.
    """
    reading = read_aloud(text, language)
    if reading.unspoken:
        remedy = "leave them out, or write them in words"
        raise UnspokenError(
            reading.unspoken,
            f"no words in {language!r} for" if language else "no words without a language for",
            remedy if language else f'{remedy}, or name the language, such as "en"',
        )
    return reading.text


def read_aloud(text: str, language: str = "en") -> Reading:
    """Returns a text as it is read aloud, and its parts without words; arguments as in `spoken_form`.

    It takes time linear in the length of the text.
    """
    unspoken: dict[str, None] = {}
    in_words = in_english if primary(language) == "en" else _other_language(language, unspoken)
    lines = (_pronounceable(in_words(_plain(line)), unspoken) for line in text.splitlines())
    return Reading("\n".join(filter(None, lines)), tuple(unspoken))


def text_for(tokenizer: Tokenizer, text: str, language: str = "en") -> str:
    """Returns the spoken form of a text in the characters that a voice's tokenizer knows.

    An unknown capital is replaced by its small letter (and the reverse), an unknown accented letter by its base letter,
    an unknown mark by a similar one or else by a space, at the end of a sentence by a line end; an unknown apostrophe
    is removed. So a tokenizer of cased transcripts with punctuation gets both, and one of lower-case words gets a line
    of lower-case words for every sentence.

    Raises:
      UnspokenError: the text has parts without words, or letters that the tokenizer does not know.
    """
    text = spoken_form(text, language)
    replaced = {character: _known_form(character, tokenizer) for character in set(text)}
    unknown = [character for character in dict.fromkeys(text) if replaced[character] is None]
    if unknown:
        raise UnspokenError(
            unknown,
            "this voice was not trained on",
            "write the text in the letters of its training texts, or choose a voice of this language",
        )
    lines = "".join(replaced[character] for character in text).split("\n")
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))


def _known_form(character: str, tokenizer: Tokenizer) -> str | None:
    """Returns what stands for a character in the texts of a tokenizer, or None if nothing does."""
    if character.isspace():
        return "\n" if character == "\n" else " "
    base = unicodedata.normalize("NFD", character)[0]
    forms = (character, character.lower(), character.upper(), base, base.lower(), base.upper())
    forms += tuple(_SIMILAR.get(character, ""))
    for form in forms:
        if not tokenizer.unknown(form):
            return form
    if character.isalpha():
        return None
    return "\n" if character in ".?!" else " " if character in ",;:-" else ""


def _named(part: str) -> str:
    if len(part) > 1:
        return repr(part)
    shown = repr(part) if part.isprintable() else ""
    return " ".join(filter(None, (shown, f"(U+{ord(part):04X} {unicodedata.name(part, 'without a name')})")))


def _plain(line: str) -> str:
    """Returns a line in NFKC, with plain quotes and dashes, decimal digits, and raised digits after "^"."""
    if line.isascii():
        return line
    line = line.translate(_PLAIN).replace("\u00a9", " copyright ").replace("\u2122", "").replace("\u00ae", "")
    line = _GROUPING_SPACE.sub("", line)
    line = _FRACTION.sub(lambda match: f"{match[1]} {unicodedata.normalize('NFKC', match[2])}", line)
    line = _POWER.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), line)
    line = unicodedata.normalize("NFKC", line).translate(_PLAIN)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in line)


def _other_language(language: str, unspoken: dict[str, None]) -> Callable[[str], str]:
    """Returns the function that puts the numbers of a line in words, and notes numerals without words."""

    def in_words(line: str) -> str:
        try:
            return say_numbers(line, language)
        except ValueError:  # `UnspeakableError`, or more digits than Python converts
            pass
        words, without_words = [], []
        for token in line.split():
            try:
                words.append(say_numbers(token, language))
            except ValueError:
                without_words.append(token)
        # A numeral may have words by itself but not in its context, such as the ordinal of "3. Mai".
        unspoken.update(dict.fromkeys(without_words or [token for token in line.split() if re.search(r"\d", token)]))
        return " ".join(words)

    return in_words


def _pronounceable(line: str, unspoken: dict[str, None]) -> str:
    """Returns the words and pauses of a line; notes characters that are neither."""
    kept = []
    for position, character in enumerate(line):
        category = unicodedata.category(character)
        if category[0] == "L" or character in PAUSES or character.isspace():
            kept.append(character)
        elif category in ("Mn", "Mc"):
            if kept and unicodedata.category(kept[-1][-1:] or " ")[0] in "LM":
                kept.append(character)
        elif category in ("Cf", "Me"):  # joiners, directions, keycaps
            continue
        elif character in "'-" and _is_within_word("".join(kept[-1:]), line[position + 1 : position + 2]):
            kept.append(character)
        elif category in ("Ps", "Pe", "Pd"):
            kept.append(" , " if character != "-" else " ")
        elif category == "Cc" or (category[0] == "P" and character not in "#%&*@\u2030\u2031\u00a7"):
            kept.append("" if character in "'\"" else " ")
        else:
            unspoken[character] = None
            kept.append(" ")
    text = _MARKS.sub(_one_mark, " ".join("".join(kept).split()))
    return " ".join(text.split()).strip(" ,;:")


def _is_within_word(before: str, after: str) -> bool:
    return unicodedata.category(before[-1:] or " ")[0] in "LM" and after.isalpha()


def _one_mark(match: re.Match[str]) -> str:
    """Returns the strongest of the marks in a row; an ellipsis within a sentence is a comma."""
    marks = match[0]
    if ".." in marks and match.string[match.end() : match.end() + 2].strip()[:1].islower():
        return ", "
    return next(mark for mark in _STRONGEST if mark in marks) + " "
