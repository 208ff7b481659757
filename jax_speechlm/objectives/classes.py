"""What objectives over labelled rows have in common: the classes, by name, and what a label's number is."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import numpy as np
import pydantic
from jaxtyping import Int
from pydantic import Field

from data_pipelines.errors import DataError
from jax_speechlm.objectives.base import ObjectiveConfig


class ReadsClasses(ObjectiveConfig):
    """Settings of an objective that tells rows apart by their label.

    Attributes:
      classes: the labels, in the order of their numbers; a label in the data that is none of them is an error.
    """

    reads_labels: ClassVar[bool] = True
    encoders: ClassVar[tuple[str, ...]] = ("conformer", "fast_conformer")

    classes: Annotated[tuple[str, ...], Field(min_length=2)]

    @pydantic.field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError(f"classes must be distinct, got {', '.join(classes)}")
        return classes

    def numbers(self, labels: Iterable[str]) -> Int[np.ndarray, " rows"]:
        """The class of each label: its place in `classes`.

        Raises:
          DataError: a label is none of them.
        """
        number = {label: place for place, label in enumerate(self.classes)}
        try:
            return np.array([number[label] for label in labels], np.int32)
        except KeyError as error:
            raise DataError(
                f"the label {error} is none of the classes {', '.join(map(repr, self.classes))}: add it to "
                "objective.classes, or leave such rows out of the data set"
            ) from None
