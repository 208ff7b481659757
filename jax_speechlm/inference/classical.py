"""Classification of recordings by a classical classifier that `jax-speechlm baseline` trained."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float
from sklearn.pipeline import Pipeline

from data_pipelines.audio.decode import AudioError
from data_pipelines.core.errors import DataError
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.utterance_vectors import VectorKind, utterance_vectors
from jax_speechlm.inference.predictor import Row, rows_of_recordings
from jax_speechlm.inference.segmentation import Recording, name_of
from jax_speechlm.models.classical.classifiers import load_classifier, save_classifier

SAMPLE_RATE = 16_000
"""Of the audio of classical classifiers, in Hz."""

_SETTINGS, _CLASSIFIER = "baseline.json", "classifier.skops"
_SECONDS = 60.0  # of padded audio per batch


class Settings(Config):
    """What a classical classifier was trained on.

    Attributes:
      vectors: kind of its input.
      target, sets: column that it predicts, and its training data.
    """

    vectors: VectorKind
    target: str
    sets: tuple[str, ...]


def save(folder: Path, classifier: Pipeline, vectors: VectorKind, target: str, sets: tuple[str, ...]) -> None:
    """Writes a folder that `ClassicalClassifier.load` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(vectors=vectors, target=target, sets=sets)
    (folder / _SETTINGS).write_text(settings.model_dump_json(indent=1))
    save_classifier(classifier, folder / _CLASSIFIER)


def is_classical(folder: Path) -> bool:
    """Returns whether a folder has a classical classifier."""
    return (folder / _SETTINGS).exists()


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalClassifier:
    """A classifier of MFCCs, which classifies recordings as `Classifier` does."""

    abilities: ClassVar[tuple[str, ...]] = ("classify",)
    reads_texts: ClassVar[bool] = False

    settings: Settings
    classifier: Pipeline

    @classmethod
    def load(cls, folder: Path) -> "ClassicalClassifier":
        """Opens a folder; raises `DataError` if its files cannot be read."""
        try:
            settings = Settings.model_validate_json((folder / _SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / _SETTINGS}: cannot be read ({error}): train it again by baseline") from error
        return cls(settings, load_classifier(folder / _CLASSIFIER))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in the order of their probabilities."""
        return tuple(str(name) for name in self.classifier.classes_)

    def probabilities(
        self, recordings: Sequence[Recording], *, max_seconds: float = 30.0
    ) -> Float[np.ndarray, "recordings classes"]:
        """Computes class probabilities of recordings; an SVM has 1 for its class and 0 for the others.

        Recordings longer than `max_seconds` are cut at pauses; the result is the mean over the parts, weighted by
        length.

        Raises:
          AudioError: a recording cannot be read, or is too short for a single frame.
        """
        compute = jax.jit(functools.partial(utterance_vectors, kind=self.settings.vectors, sample_rate=SAMPLE_RATE))
        parts = rows_of_recordings(compute, recordings, SAMPLE_RATE, max_seconds, _SECONDS)
        rows = [self._mean(recording, outputs) for recording, outputs in parts]
        return np.array(rows, np.float32).reshape(-1, len(self.classes))

    def _mean(self, recording: Recording, rows: Sequence[Row]) -> Float[np.ndarray, " classes"]:
        frames = np.array([int(count) for _, count in rows])
        if not frames.sum():
            raise AudioError(name_of(recording), "too short for a single frame", "leave it out")
        vectors = np.stack([vector for vector, _ in rows])[frames > 0]
        if hasattr(self.classifier, "predict_proba"):
            shares = self.classifier.predict_proba(vectors)
        else:
            shares = self.classifier.predict(vectors)[:, None] == self.classifier.classes_
        return np.average(shares, axis=0, weights=frames[frames > 0])
