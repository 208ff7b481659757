"""What a trained classifier takes recordings, or texts, for."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.audio import AudioError
from data_pipelines.errors import DataError
from jax_speechlm.experiment import Text
from jax_speechlm.trained import Trained
from jax_speechlm.vocabulary import Vocabulary, pad
from jax_speechlm.windows import Recording, Samples, cut_at_pauses, in_batches

_TEXTS = 16  # in a batch


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model that was trained by `classification`.

    Attributes:
      run: the checkpoint that it was read from.
    """

    run: Trained

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Classifier":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Raises:
          CheckpointError: there is no readable checkpoint, or it was not trained by classification.
        """
        return cls(Trained.load(path, "classification", "tell classes apart"))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in the order of their probabilities."""
        return self.run.experiment.objective.classes

    @property
    def reads_texts(self) -> bool:
        """Whether it classifies texts, and not recordings."""
        return isinstance(self.run.experiment.data, Text)

    def probabilities(
        self, inputs: Sequence[Recording] | Sequence[str], *, max_seconds: float = 30.0
    ) -> Float[np.ndarray, "inputs classes"]:
        """How probable each class is for each recording, or text. What an input gives does not depend on the others.

        Args:
          inputs: recordings of any length, or texts, of which the first `data.context` tokens are read.
          max_seconds: a longer recording is cut at pauses: the mean over its parts, by their length.

        Raises:
          AudioError: a recording cannot be read, or is too short for a single frame.
        """
        if self.reads_texts:
            return self._of_texts(inputs)
        return self._of_parts([cut_at_pauses(each, max_seconds) for each in inputs], inputs)

    def _of_parts(
        self, cut: Sequence[list[Samples]], names: Sequence[Recording]
    ) -> Float[np.ndarray, "inputs classes"]:
        model, mel = self.run.experiment.model, self.run.experiment.frontend.mel
        parts = [part for each in cut for part in each]
        of_part = np.repeat(np.arange(len(cut)), [len(each) for each in cut])
        weight = np.array([int(model.num_frames(mel.num_frames(len(part)))) for part in parts])
        total = np.zeros((len(cut), len(self.classes)))
        for batch in in_batches(parts):
            real = batch["example_id"] >= 0
            numbers = batch["example_id"][real]
            found = np.asarray(self._compute(self.run.params, batch))[real]
            np.add.at(total, of_part[numbers], weight[numbers, None] * found)
        count = np.bincount(of_part, weight, len(cut))
        if (short := np.flatnonzero(count == 0)).size:
            first = names[short[0]]
            name = str(first) if isinstance(first, str | os.PathLike) else "audio"
            raise AudioError(name, "too short for a single frame", "leave it out")
        return (total / count[:, None]).astype(np.float32)

    def _of_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "inputs classes"]:
        tokenizer, context = self.run.tokenizer, self.run.experiment.data.context
        vocabulary, found = Vocabulary.of(tokenizer), []
        for start in range(0, len(texts), _TEXTS):
            rows = [vocabulary.enclose(tokenizer.encode(text))[:context] for text in texts[start : start + _TEXTS]]
            lengths = np.array([*map(len, rows), *[0] * (_TEXTS - len(rows))])
            place = np.broadcast_to(np.arange(context, dtype=np.int32), (_TEXTS, context))
            batch = {"tokens": pad(rows, context, _TEXTS), "position": place}
            batch["segment"] = (place < lengths[:, None]).astype(np.int32)
            found.append(np.asarray(self._compute(self.run.params, batch))[: len(rows)])
        return np.concatenate([np.zeros((0, len(self.classes)), np.float32), *found])

    @functools.cached_property
    def _compute(self):
        experiment, tokenizer = self.run.experiment, self.run.tokenizer if self.reads_texts else None
        _, logits, _ = experiment.objective.classifier(experiment.model, experiment.frontend, tokenizer)
        return jax.jit(lambda params, batch: jax.nn.softmax(logits(params, batch, None).astype(jnp.float32)))


def classify(checkpoint: Positional[Path], inputs: Positional[tuple[str, ...]], max_seconds: float = 30.0) -> None:
    """Prints what a classifier takes audio files, or texts, for: a line of JSON for each, the likeliest class first.

    Args:
      checkpoint: a run that was trained by classification: its directory, or a checkpoints/<step> folder.
      inputs: audio files of any format, rate, length and number of channels; or texts, to a classifier of texts.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
    """
    classifier, failed = Classifier.load(checkpoint), 0
    for each in inputs:
        try:
            (shares,) = classifier.probabilities([each], max_seconds=max_seconds).tolist()
        except AudioError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        ranked = sorted(zip(classifier.classes, shares, strict=True), key=lambda pair: -pair[1])
        line = {"text" if classifier.reads_texts else "file": each, "class": ranked[0][0]}
        line |= {"probabilities": {name: round(share, 4) for name, share in ranked}}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    if failed:
        raise DataError(f"{failed} of {len(inputs)} files could not be classified")
