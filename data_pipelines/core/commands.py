"""Labels of spoken commands: an intent, and the values of its slots by name."""

import json
from collections.abc import Mapping
from typing import Any


def write_slots(slots: Any) -> str:
    """Returns slots in the form in which an index stores them: a JSON object, by name, without empty values.

    Args:
      slots: values by name; white space at the ends of a value, and runs of it, do not count.

    Raises:
      TypeError: they are not an object of names and strings or numbers.
    """
    if not isinstance(slots, Mapping):
        raise TypeError(f"must be an object of names and values, found {str(slots)[:80]!r}")
    texts = {}
    for name, value in slots.items():
        if value is not None and (not isinstance(value, str | int | float) or isinstance(value, bool)):
            raise TypeError(f"must have strings or numbers as values, found {str(value)[:80]!r} for {name!r}")
        text = "" if value is None else " ".join(str(value).split())
        if text:
            texts[str(name)] = text
    return json.dumps(texts, ensure_ascii=False, sort_keys=True)


def read_slots(text: str) -> dict[str, str]:
    """Returns the values by name that `write_slots` wrote; none of an empty text."""
    return json.loads(text) if text else {}
