"""Rules that replace what identifies persons in text: addresses, numbers of telephones, cards and accounts."""

import functools
import ipaddress
import re
from collections.abc import Callable

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4})(?![\w:]|\.\d)")
_SOCIAL_SECURITY = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]?\d)")
_PHONE = re.compile(
    r"(?<![\w.,])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{1,5}(?:[ .-]?\d{2,5}){1,5}(?![\w]|[.,]\d)"
)
_LEAST_DIGITS, _MOST_DIGITS = 9, 15  # of a telephone number, the most by ITU-T E.164; dates and years have fewer
_SPOKEN = re.compile(
    r"\b(?:(?:double |triple )?(?:zero|oh|one|two|three|four|five|six|seven|eight|nine)[ ,-]+){6,}"
    r"(?:double |triple )?(?:zero|oh|one|two|three|four|five|six|seven|eight|nine)\b",
    re.IGNORECASE,
)


def scrub(text: str, language: str = "") -> str:
    """Replaces e-mail addresses, IBANs, IP addresses, numbers of cards, telephones and US social security, and seven or
    more digits in English words in a row, by `EMAIL`, `ACCOUNT`, `ADDRESS`, `CARD`, `PHONE`, `NUMBER`.

    Card numbers and IBANs are known by their check digits. Names and places are not looked for, and no rule finds
    everything.

    Args:
      text: as it is written, before it is made lower case or spoken.
      language: unused; the rules hold in every language.
    """
    for pattern, is_one, label in _RULES:
        text = pattern.sub(functools.partial(_replaced, is_one, label), text)
    return text


def _replaced(is_one: Callable[[str], bool], label: str, match: re.Match[str]) -> str:
    return label if is_one(match[0]) else match[0]


def _always(found: str) -> bool:
    return True


def _is_iban(found: str) -> bool:
    """Returns whether the remainder by 97 is 1 (ISO 7064)."""
    compact = found.replace(" ", "")
    digits = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return 15 <= len(compact) <= 34 and int(digits) % 97 == 1


def _is_address(found: str) -> bool:
    try:
        return bool(ipaddress.ip_address(found))
    except ValueError:
        return False


def _is_card(found: str) -> bool:
    """Returns whether the check digit is right (Luhn 1960)."""
    digits = [int(character) for character in reversed(found) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_phone(found: str) -> bool:
    if re.fullmatch(r"\d+\.\d+", found):  # a decimal fraction
        return False
    return _LEAST_DIGITS <= sum(map(str.isdigit, found)) <= _MOST_DIGITS


_RULES = (
    (_EMAIL, _always, "EMAIL"),
    (_IBAN, _is_iban, "ACCOUNT"),
    (_IP, _is_address, "ADDRESS"),
    (_SOCIAL_SECURITY, _always, "NUMBER"),
    (_CARD, _is_card, "CARD"),
    (_PHONE, _is_phone, "PHONE"),
    (_SPOKEN, _always, "NUMBER"),
)
