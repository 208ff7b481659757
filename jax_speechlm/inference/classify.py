"""Classification of recordings or texts by a trained classifier."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.audio.decode import AudioError
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.classical import ClassicalClassifier, is_classical
from jax_speechlm.inference.predictor import Row, RunPredictor, print_lines, rows_of_recordings
from jax_speechlm.inference.segmentation import Recording, name_of
from jax_speechlm.inference.text_batches import outputs_of_rows
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.classification import Classification

_SECONDS = 60.0  # of padded audio per batch


class Classifier(RunPredictor):
    """Classifies recordings or texts with a model trained by `classification`."""

    objective = Classification
    purpose = "classify"

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("classify",) if self.reads_texts else ("classify", "embed")

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in the order of their probabilities."""
        return self.run.experiment.objective.classes

    @property
    def reads_texts(self) -> bool:
        """Whether it classifies texts instead of recordings."""
        return isinstance(self.run.experiment.model, TransformerConfig)

    def probabilities(
        self, inputs: Sequence[Recording] | Sequence[str], *, max_seconds: float = 30.0
    ) -> Float[np.ndarray, "inputs classes"]:
        """Computes class probabilities of recordings or texts, each independent of the others.

        Of a text the first `data.context` tokens are used. Recordings longer than `max_seconds` are cut at pauses; the
        result is the mean over the parts, weighted by length.

        Raises:
          AudioError: a recording cannot be read, or is too short for a single frame.
        """
        if self.reads_texts:
            rows = self._of_texts(inputs)
        else:
            rate = self.run.experiment.sample_rate
            parts = rows_of_recordings(self._compute, inputs, rate, max_seconds, _SECONDS)
            rows = [self._mean(recording, outputs) for recording, outputs in parts]
        return np.array(rows, np.float32).reshape(-1, len(self.classes))

    def _mean(self, recording: Recording, rows: Sequence[Row]) -> Float[np.ndarray, " classes"]:
        """Returns the mean of a recording's parts, weighted by their frames."""
        count = sum(int(frames) for _, frames in rows)
        if not count:
            raise AudioError(name_of(recording), "too short for a single frame", "leave it out")
        return sum(int(frames) * shares.astype(np.float64) for shares, frames in rows) / count

    def _of_texts(self, texts: Sequence[str]) -> list[Float[np.ndarray, " classes"]]:
        tokenizer, context = self.run.tokenizer, self.run.experiment.data.context
        vocabulary = Vocabulary.of(tokenizer)
        rows = [vocabulary.enclose(tokenizer.encode(text))[:context] for text in texts]
        return outputs_of_rows(functools.partial(self._probabilities, self.run.params), rows, context)

    @functools.cached_property
    def _probabilities(self):
        experiment, tokenizer = self.run.experiment, self.run.tokenizer if self.reads_texts else None
        logits = experiment.objective.classifier(experiment.model, experiment.frontend, tokenizer)
        return jax.jit(lambda params, batch: jax.nn.softmax(logits(params, batch, None).astype(jnp.float32)))

    def _compute(self, batch):
        model, mel = self.run.experiment.model, self.run.experiment.frontend.mel
        frames_B = model.num_frames(mel.num_frames(np.asarray(batch["audio_length"])))
        return self._probabilities(self.run.params, batch), frames_B


def classify(checkpoint: Positional[Path], inputs: Positional[tuple[str, ...]], max_seconds: float = 30.0) -> None:
    """Classifies audio files or texts; prints one line of JSON for each, with the most probable class first.

    Args:
      checkpoint: a run trained by classification: its directory, or one of its checkpoints/<step> folders; or a
        classifier of `jax-speechlm baseline`.
      inputs: audio files of any format, rate, length and number of channels; or texts, for a classifier of texts.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
    """
    classifier = ClassicalClassifier.load(checkpoint) if is_classical(checkpoint) else Classifier.load(checkpoint)

    def describe(each: str) -> dict[str, Any]:
        (shares,) = classifier.probabilities([each], max_seconds=max_seconds).tolist()
        ranked = sorted(zip(classifier.classes, shares, strict=True), key=lambda pair: -pair[1])
        line = {"text" if classifier.reads_texts else "file": each, "class": ranked[0][0]}
        return line | {"probabilities": {name: round(share, 4) for name, share in ranked}}

    print_lines(inputs, describe)
