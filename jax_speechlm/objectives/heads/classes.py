"""What objectives over labelled rows have in common: the classes, by name, and what a label's number is."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Int
from pydantic import AfterValidator, Field

from data_pipelines.core.errors import DataError
from jax_speechlm.core.config import Config
from jax_speechlm.objectives.base import ObjectiveConfig


def _differ(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes must be distinct, got {', '.join(classes)}")
    return classes


Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_differ)]
"""Names of classes, in the order of their numbers."""


class ReadsClasses(ObjectiveConfig):
    """Settings of an objective that tells rows apart by their label.

    Attributes:
      classes: the labels, in the order of their numbers; a label in the data that is none of them is an error.
    """

    reads_labels: ClassVar[bool] = True
    encoders: ClassVar[tuple[str, ...]] = ("conformer", "fast_conformer")

    classes: Classes

    def label_column(self, data: Config) -> str:
        """The column of an index that holds the labels."""
        return data.label

    def numbers(self, labels: Iterable[str], training: bool = True) -> Int[np.ndarray, " rows"]:
        """The class of each label: its place in `classes`.

        Args:
          training: whether the rows are to train on, and not to validate on.

        Raises:
          DataError: a label is none of them.
        """
        del training
        number = {label: place for place, label in enumerate(self.classes)}
        try:
            return np.array([number[label] for label in labels], np.int32)
        except KeyError as error:
            raise DataError(
                f"the label {error} is none of the classes {', '.join(map(repr, self.classes))}: add it to "
                "objective.classes, or leave such rows out of the data set"
            ) from None
