"""Class names of objectives over labelled rows or frames."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _differ(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes must be distinct, got {', '.join(classes)}")
    return classes


Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_differ)]
"""Class names in the order of their ids."""
