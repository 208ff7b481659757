"""Rules that put the numbers, abbreviations and signs of English text in words.

Rules are applied in order, each to the whole line; the words that one makes have no digits, initialisms or signs, so
that no later rule changes them. Every pattern has bounded repetitions, so a line takes linear time. Dates of digits are
month/day/year, as in the United States, unless the month would be above 12.
"""

import re
from collections.abc import Callable

from data_pipelines.text.english_tables import (
    ABBREVIATIONS,
    BEFORE_NUMBERS,
    CURRENCIES,
    DOMAINS,
    LETTER_NAMES,
    MAGNITUDES,
    MONTHS,
    NUMBERED,
    ORDINALS,
    REGNAL,
    SIGNS,
    SPELLED,
    TITLES,
    UNITS,
    WEB_SIGNS,
    WORDS_IN_CAPITALS,
)
from data_pipelines.text.numbers import cardinal, spell_out

_Match = re.Match[str]
_ROMAN = re.compile(r"X{0,3}(?:IX|IV|V?I{0,3})")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}
_LONGEST_WORDS = 15  # digits; longer numbers are read digit by digit


def in_english(line: str) -> str:
    """Returns a line, in NFKC and with plain quotes, with its numbers, abbreviations and usual signs in words."""
    if sum(map(str.isupper, line)) > 5 and not any(map(str.islower, line)):  # a line in capitals has no initialisms
        line = re.sub(
            r"[A-Z]{2,}", lambda match: match[0].lower() if re.search("[AEIOUY]", match[0]) else match[0], line
        )
    for pattern, replace in _RULES:
        line = pattern.sub(replace, line)
    return line


def _small_if_pronounceable(match: _Match) -> str:
    return match[0].lower() if re.search("[AEIOUY]", match[0]) else match[0]


def letters(text: str) -> str:
    """Returns the names of letters and digits: "TV" is "t v", "A4" is "ay four"."""
    return " ".join(cardinal(int(c), "en") if c.isdecimal() else LETTER_NAMES.get(c.lower(), c.lower()) for c in text)


def number_words(number: str, *, in_pairs: bool = True) -> str:
    """Returns the words of a number such as "1,234.5" or "007".

    Args:
      in_pairs: whether four digits are read as a year is: 1984 as "nineteen eighty four".
    """
    whole, _, fraction = number.partition(".")
    digits = whole.replace(",", "")
    if in_pairs and len(whole) == 4 and whole[0] != "0":
        words = cardinal_words(whole) if int(whole) % 1000 < 10 else spell_out(int(whole), "en")
    elif whole == digits and (_has_leading_zero(digits) or (len(digits) > 9 and not digits.endswith("000000"))):
        words = letters(digits)
    else:
        words = cardinal_words(digits)
    return f"{words} point {letters(fraction)}" if fraction else words


def cardinal_words(digits: str) -> str:
    """Returns the words of a whole number; above `_LONGEST_WORDS` digits, those of its digits."""
    if len(digits) > _LONGEST_WORDS:
        return letters(digits)
    number = int(digits)
    for size, end, name in ((10**12, 10**_LONGEST_WORDS, "trillion"), (1000, 1100, "thousand")):
        if size <= number < end:  # where `cardinal` has no words, or those of a year
            head, rest = divmod(number, size)
            return f"{cardinal(head, 'en')} {name} {cardinal_words(str(rest)) if rest else ''}".strip()
    return cardinal(number, "en").strip()


def ordinal_words(digits: str) -> str:
    """Returns the ordinal of a whole number."""
    head, _, last = cardinal_words(digits).rpartition(" ")
    last = ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{head} {last}".strip()


def _has_leading_zero(digits: str) -> bool:
    return len(digits) > 1 and digits[0] == "0"


def _said(words: str) -> str:
    return f" {words} "


def _any(names: object) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _full_stop(match: _Match, before_capital: bool = True) -> str:
    """Returns the full stop of the sentence, if that of an abbreviation is it too: at the end, or before a capital."""
    after = match.string[match.end() : match.end() + 3].lstrip(" \"')")
    return "." if not after or (before_capital and after[0].isupper()) else ""


# --- addresses ---


def _web(match: _Match) -> str:
    address = re.sub(r"^https?://", "", match[0])
    kept = address.rstrip(".,;:?!)]'\"/")
    words = []
    for part in re.findall(r"[^\W\d_]+|\d+|[^\w\s]|_", kept):
        if part.isdecimal():
            words.append(letters(part) if len(part) > 2 else number_words(part))
        elif part.isalpha():
            is_word = part.lower() in DOMAINS or (len(part) > 2 and re.search("[aeiouy]", part.lower()))
            words.append(part.lower() if is_word or not part.isascii() else letters(part))
        else:
            words.append(WEB_SIGNS.get(part, part))
    return _said(" ".join(words)) + address[len(kept) :].replace("/", "")


# --- dates and times ---


def _date(month: str, day: str | None, year: str | None) -> str:
    words = [month, *([ordinal_words(day)] if day else []), *([number_words(year)] if year else [])]
    return _said(" ".join(words))


def _date_of_digits(match: _Match) -> str:
    month, day = sorted((int(match["month"]), int(match["day"]))) if int(match["month"]) > 12 else (
        int(match["month"]), int(match["day"]),
    )  # fmt: skip
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return _date(list(MONTHS.values())[month - 1], str(day), match["year"])


def _month_first(match: _Match) -> str:
    return _date(MONTHS[match["month"]], match["day"], match["year"]) if int(match["day"]) <= 31 else match[0]


def _day_first(match: _Match) -> str:
    if not 1 <= int(match["day"]) <= 31:
        return match[0]
    the = "" if match.string[: match.start()].rstrip().lower().endswith("the") else "the "
    year = f" {number_words(match['year'])}" if match["year"] else ""
    return _said(f"{the}{ordinal_words(match['day'])} of {MONTHS[match['month']]}{year}")


def _time(match: _Match) -> str:
    parts = match.groupdict()
    hour, minute, second, half = (parts.get(name) for name in ("hour", "minute", "second", "half"))
    words = [cardinal_words(hour)]
    if minute and int(minute):
        words.append(f"oh {letters(minute[1])}" if minute[0] == "0" else cardinal_words(minute))
    elif minute and not half and not second:
        words.append("o'clock" if 1 <= int(hour) <= 12 else "hundred")
    if second:
        words.append(f"and {cardinal_words(second)} seconds")
    if half:
        words.append(letters(f"{half}m"))
    return _said(" ".join(words)) + (_full_stop(match) if match[0].endswith(".") else "")


# --- numbers with something ---


def _telephone(match: _Match) -> str:
    plus = "plus " if match[0].startswith("+") else ""
    return _said(plus + ", ".join(letters(group) for group in re.findall(r"\d+", match[0])))


def _money(match: _Match) -> str:
    one, several, cent, cents = CURRENCIES[match["sign"]]
    amount, magnitude = match["amount"], match.groupdict().get("magnitude") or ""
    whole, _, fraction = amount.partition(".")
    if magnitude or (fraction and (len(fraction) != 2 or not cent)):
        name = MAGNITUDES.get(magnitude.lower(), magnitude.lower())
        return _said(f"{number_words(amount, in_pairs=False)} {name} {several}")
    parts = []
    if whole.strip("0,") or not fraction.strip("0"):
        parts.append(f"{number_words(whole, in_pairs=False)} {one if whole == '1' else several}")
    if fraction.strip("0"):
        parts.append(f"{cardinal_words(fraction)} {cent if fraction == '01' else cents}")
    return _said(" and ".join(parts))


def _fraction(match: _Match) -> str:
    whole, above, below = match["whole"], match["above"], match["below"]
    if (above, below) in (("24", "7"), ("9", "11")) or (above == below and not whole):
        return _said(f"{cardinal_words(above)} {cardinal_words(below)}")
    if len(above) > 2 or len(below) > 3 or int(below) < 2:
        words = f"{cardinal_words(above)} over {cardinal_words(below)}"
    else:
        part = {2: "half", 4: "quarter"}.get(int(below)) or ordinal_words(below)
        several = "halves" if part == "half" else f"{part}s"
        is_half = whole and (above, below) == ("1", "2")
        words = "a half" if is_half else f"{cardinal_words(above)} {part if int(above) == 1 else several}"
    return _said(f"{number_words(whole, in_pairs=False)} and {words}" if whole else words)


def _unit(match: _Match) -> str:
    one, several = UNITS.get(match["unit"], ("second", "seconds"))
    return _said(f"{number_words(match['amount'], in_pairs=False)} {one if match['amount'] == '1' else several}")


def _decade(match: _Match) -> str:
    words = number_words(match[1])
    return _said(f"{words[:-1]}ies" if words.endswith("y") else f"{words}s")


def _power(match: _Match) -> str:
    return _said({"2": "squared", "3": "cubed"}.get(match[1]) or f"to the power of {number_words(match[1])}")


# --- names ---


def _roman(match: _Match) -> str:
    numeral = match["numeral"]
    if not _ROMAN.fullmatch(numeral):
        return match[0]
    values = [_ROMAN_DIGITS[digit] for digit in numeral]
    value = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    is_ruler = match.groupdict().get("ruler") or match["name"] in REGNAL
    words = f"the {ordinal_words(str(value))}" if is_ruler else cardinal_words(str(value))
    return f"{match[0][: -len(numeral)]}{words}"


def _doctor_or_saint(match: _Match) -> str:
    before = match.string[max(0, match.start() - 30) : match.start()]
    after = match.string[match.end() : match.end() + 2].lstrip()
    # The name of a road is a capital within a sentence, or follows a number.
    name = re.search(r"(?:[a-z,] [A-Z][a-z]+|\d\w* [A-Z][a-z]+|\d(?:st|nd|rd|th)?) $", before)
    if match[1] == "Dr":
        return f"Drive{_full_stop(match)}" if name else "Doctor"
    return f"Street{_full_stop(match)}" if name or not after[:1].isupper() else "Saint"


def _letters_and_digits(match: _Match) -> str:
    words = []
    for part in re.findall(r"[A-Za-z]+|\d+", match[0]):
        if part.isdecimal():
            words.append(number_words(part) if len(part) < 5 else letters(part))
        else:
            is_word = len(part) > 2 and not part.isupper() and re.search("[aeiouy]", part)
            words.append(part if is_word else letters(part))
    return _said(" ".join(words))


def _capitals(match: _Match) -> str:
    word, end = match[1], match[2] or ""
    if end.isupper():  # IT'S
        return match[0].lower()
    is_spelled = len(word) <= 3 or word in SPELLED or re.search(r"^[^AEIOUY]+$|[^AEIOUY]{4}", word)
    if word in WORDS_IN_CAPITALS or not is_spelled:
        return match[0].lower()
    return _said(letters(word) + ("'s" if end else ""))


_NUMBER = r"\d{1,3}(?:,\d{3}){1,12}(?![\d,])(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?"
_START = r"(?<![\w.,])(?<![\w]-)"  # where a number may begin
_AMOUNT = rf"(?P<amount>{_NUMBER})"
_MONTH = rf"(?P<month>{_any(MONTHS)})\b\.?"
_YEAR = r"(?P<year>[12]\d{3})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_HALF = r"(?P<half>[AaPp])(?:\.[Mm]\.|[Mm]\b)"
_CURRENCY_SIGNS = _any(sign for sign in CURRENCIES if not sign.isalpha())
_DASH = "[-\u2013\u2014]"
_LONG_DASH = "[\u2013\u2014]"
_NAME = r"(?P<name>[A-Z][a-z]{1,20})"

_Rule = tuple[str, "Callable[[_Match], str] | str"]
_PATTERNS: tuple[_Rule, ...] = (
    # addresses
    (r"(?<![\w.+%@-])[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", _web),
    (r"(?<![\w@.])(?:https?://|www\.)[^\s<>\"]{1,2000}", _web),
    (rf"(?<![\w@.-])[\w-]{{1,63}}(?:\.[\w-]{{1,63}}){{0,5}}\.(?:{'|'.join(DOMAINS)})\b(?:/[^\s<>\"]{{0,2000}})?", _web),
    # dates and times
    (rf"{_START}{_YEAR}([-/.])(?P<month>[01]?\d)\2(?P<day>[0-3]?\d)(?![\w-])", _date_of_digits),
    (rf"{_START}(?P<month>\d{{1,2}})([/.])(?P<day>\d{{1,2}})\2(?P<year>\d{{4}})(?![\w-])", _date_of_digits),
    (rf"\b{_MONTH}\s{{1,3}}{_DAY}(?![\w:]|[.,]\d)(?:,?\s{{1,3}}{_YEAR}(?![\w-]|,\d))?", _month_first),
    (rf"{_START}{_DAY}\s{{1,3}}(?:of\s)?{_MONTH}(?:,?\s{{1,3}}{_YEAR}(?![\w-]))?", _day_first),
    (rf"(?:(?<=\d)|(?<=[APap]m)|(?<=m\.))\s?{_DASH}\s?(?=[012]?\d(?::\d\d|\s?[ap]\.?m\b))", " to "),
    (
        rf"{_START}(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:])(?:\s?{_HALF})?",
        _time,
    ),
    (rf"{_START}(?P<hour>1[0-2]|0?[1-9])(?:\.(?P<minute>[0-5]\d))?\s?{_HALF}", _time),
    (r"(?<=\d):(?=\d{1,2}(?![\d:]))", " to "),
    # digits that are no numbers
    (r"(?<![\w.+-])\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,6}(?![\w-])", _telephone),
    (r"(?<![\w.-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])", _telephone),
    (r"(?<![\w.-])\d{3}-\d{4}(?![\w-])", _telephone),
    (r"(?<![\w.-])\d{4}(?:[ -]\d{4}){3}(?![\w-])", _telephone),
    (r"(?<![\w.-])\d{1,7}(?:-\d{1,7}){2,5}(?![\w-])", _telephone),
    (r"(?<![\w.,])\d{1,3}(?: \d{3}){0,3} 000(?![\w,])", lambda m: m[0].replace(" ", "")),
    (
        r"(?<![\w.])\d{1,9}(?:\.\d{1,9}){2,5}(?![\w])",
        lambda m: _said(" point ".join(map(number_words, m[0].split(".")))),
    ),
    # ranges and arithmetic
    (
        rf"{_START}({_CURRENCY_SIGNS})?(\d{{1,15}}(?:[.,]\d{{1,9}})?)%?(?:-|\s?{_LONG_DASH}\s?)(?:\1)?"
        r"(?=\d{1,15}(?:[.,]\d{1,9})?(?![\d-]))",
        lambda m: f"{m[2]} to {m[1] or ''}",
    ),
    (r"(?<=\d)(?:st|nd|rd|th)\s?-\s?(?=\d{1,9}(?:st|nd|rd|th)\b)", "th to "),
    (r"~\s?(?=\d)", " about "),
    (r"(?<=\d) - (?=\d)", " minus "),
    (rf"(?<![\w)])-\s?(?=(?:{_CURRENCY_SIGNS})?\d)", " minus "),
    (r"(?<=\d)\s?[x*\u00d7]\s?(?=\d)", " times "),
    (r"(?<=\d)\s?/\s?(?=\d{1,3}\.\d)", " divided by "),
    # money, units, fractions, ordinals
    (
        rf"(?P<sign>{_CURRENCY_SIGNS})\s?{_AMOUNT}"
        r"(?:\s?(?P<magnitude>(?i:thousand|million|billion|trillion|bn|tn|mm|[kmb]))\b)?",
        _money,
    ),
    (rf"{_START}{_AMOUNT}\s?(?P<sign>{_any(CURRENCIES)})(?!\w)", _money),
    (
        rf"{_START}(?<!/)(?:(?P<whole>\d{{1,9}})[ -])?(?P<above>\d{{1,9}})/(?P<below>\d{{1,9}})(?![\w/]|\.\d)",
        _fraction,
    ),
    (
        r"(?<!\w)(?P<feet>\d{1,2})(?:'|\s?ft\.?)\s?(?P<inches>\d{1,2})(?:\"|''|\s?in\b\.?)",
        r" \g<feet> ft \g<inches> inches ",
    ),
    # A unit's full stop is not that of the sentence if a small letter follows.
    (rf"{_START}{_AMOUNT}[\s-]?(?P<unit>{_any(UNITS)}|(?<=\s)s)(?![\w^/])(?:\.(?=\s[a-z]))?", _unit),
    (
        r"(?<![\w.])(\d{1,3}(?:,\d{3}){1,5}|\d{1,15})(?:st|nd|rd|th)\b",
        lambda m: _said(ordinal_words(m[1].replace(",", ""))),
    ),
    (r"(?<![\w.,])'?(\d{3}0|\d0)'?s\b", _decade),
    (r"\^\s?(\d{1,9})", _power),
    # names and abbreviations
    (rf"\b({_any(BEFORE_NUMBERS)})\.\s?(?=\d|[IVX]{{1,6}}\b)", lambda m: f"{BEFORE_NUMBERS[m[1]]} "),
    (rf"\b(?P<ruler>Pope|King|Queen|Emperor|Empress|Tsar|Kaiser) {_NAME} (?P<numeral>[IVX]{{1,6}})\b", _roman),
    (rf"\b(?P<name>{_any(REGNAL)}) (?P<numeral>[IVX]{{2,6}}|[VX]|I(?=[.,;:?!)]|$| of\b| and\b))(?!\w)", _roman),
    (rf"(?i:\b(?P<name>{_any(NUMBERED)})) (?P<numeral>[IVX]{{1,6}})(?![\w'])", _roman),
    (rf"\b{_NAME} (?P<numeral>(?:II|III|IV|VI|VII|VIII|IX|XI|XII|XIII|XIV|XV|XVI))\b", _roman),
    (r"#(?=\d)", " number "),
    (r"(?<!\w)#(?=[^\W\d_])", " hashtag "),
    (r"\b(Dr|St)\.(?!\w)", _doctor_or_saint),
    (r"\b(Mr|Mrs|Ms|Prof) (?=[A-Z][a-z])", lambda m: f"{TITLES[m[1]]} "),
    (r"\bDr (?=[A-Z][a-z])", "Doctor "),
    (rf"\b({_any(TITLES)})\.(?!\w)", lambda m: TITLES[m[1]]),
    (rf"(?<![\w.])({_any(ABBREVIATIONS)})\.(?![\w])", lambda m: ABBREVIATIONS[m[1]] + _full_stop(m)),
    (
        r"(?<![\w.])(?:[A-Za-z]\.){1,6}[A-Za-z]\.?(?!\w)",
        lambda m: (
            _said(letters(m[0].replace(".", ""))) + (_full_stop(m, before_capital=False) if m[0].endswith(".") else "")
        ),
    ),
    (r"\b([A-HJ-Z])\.(?=\s[A-Z])", lambda m: _said(letters(m[1]))),
    (r"\bPh\.?D\b\.?", " p h d "),
    (r"(?<!\w)C\+\+", " c plus plus "),
    (r"(?<!\w)C#", " c sharp "),
    (r"(?<!\w)(?<!\d\.)(?=[A-Za-z]{0,20}\d)(?=\d{0,20}[A-Za-z])[A-Za-z\d]{2,40}(?!\w)", _letters_and_digits),
    # what is left
    (r"(?<![\d])\.(?=\d)", " point "),
    (r"(?<=[a-z\d])\.(?=[a-z])", " dot "),
    (_NUMBER, lambda m: _said(number_words(m[0]))),
    (f"[{re.escape(''.join(SIGNS))}]", lambda m: _said(SIGNS[m[0]])),
    # capitals
    (r"\b([A-Z]{2,20})('[A-Z]{1,2}|'?s)?\b", _capitals),
    (r"\bI('[A-Z]{1,2})\b", lambda m: f"I{m[1].lower()}"),
    (r"\b([B-HJ-Z])\b(?!'[A-Za-z])", lambda m: _said(letters(m[1]))),
    (r"\bA(?=\s{0,3}(?:[^\w\s\"']|$))", " ay "),
    (
        r"(?i:\b(plan|vitamin|type|grade|class|option|group|hepatitis|letter|section|appendix)) A\b",
        r"\1 ay",
    ),
)
_RULES = tuple((re.compile(pattern), replace) for pattern, replace in _PATTERNS)
