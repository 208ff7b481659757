"""Intent and slots of spoken commands, by a model trained on audio without transcripts."""

import functools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tyro.conf import Positional

from data_pipelines.audio.decode import AudioError
from jax_speechlm.core.batch import Batch
from jax_speechlm.inference.predictor import Row, RunPredictor, print_lines, rows_by_id, rows_of_parts
from jax_speechlm.inference.segmentation import Recording, Samples, cut_at_pauses, is_silent, name_of
from jax_speechlm.objectives.heads.intent import Intent

MAX_SECONDS = 30.0
"""Longest command."""


class Command(NamedTuple):
    """What a recording asks for.

    Attributes:
      intent: None if it is no command.
      slots: values by name.
      confidence: from 0 to 1; of what depends on the method.
      text: the recognised text; '' of methods without one.
    """

    intent: str | None
    slots: dict[str, str]
    confidence: float
    text: str = ""

    def above(self, threshold: float) -> "Command":
        """Returns the command, without intent and slots if its confidence is below the threshold."""
        return self if self.confidence >= threshold else self._replace(intent=None, slots={})


def command_audio(recording: Recording, rate: int) -> Samples | None:
    """Returns the samples of a command; None of silence (below -60 dB of full scale).

    Raises:
      AudioError: it cannot be read, or lasts longer than `MAX_SECONDS`.
    """
    parts = cut_at_pauses(recording, MAX_SECONDS, rate)
    if len(parts) > 1:
        what = f"longer than a command, {MAX_SECONDS:g} s"
        raise AudioError(name_of(recording), what, "cut the commands out; jax-speechlm segment finds speech")
    return parts[0] if parts and not is_silent(parts[0], rate) else None


class CommandClassifier(RunPredictor):
    """Predicts intent and slots with a model trained by `intent`."""

    objective = Intent
    purpose = "understand commands"
    abilities = ("understand", "embed")

    def understand(self, recordings: Sequence[Recording]) -> list[Command]:
        """Returns the command of each recording, each independent of the others.

        The confidence is the probability of intent and slots together. Silence, and audio too short for a single frame,
        is no command.

        Raises:
          AudioError: a recording cannot be read, or is longer than `MAX_SECONDS`.
        """
        rate = self.run.experiment.sample_rate
        audio = [command_audio(recording, rate) for recording in recordings]
        rows = iter(rows_of_parts(self._compute, [samples for samples in audio if samples is not None]))
        return [Command(None, {}, 0.0) if samples is None else self._command(next(rows)) for samples in audio]

    def of_batches(self, batches: Iterable[Batch]) -> dict[int, Command]:
        """Returns the commands of the rows of batches by `example_id`, without filler rows."""
        return {row: self._command(arrays) for row, arrays in rows_by_id(self._compute, batches).items()}

    def _command(self, row: Row) -> Command:
        ids, log_probs, num_frames = row
        if not num_frames:
            return Command(None, {}, 0.0)
        objective = self.run.experiment.objective
        values = zip(objective.slots, ids[1:].tolist(), strict=True)
        slots = {slot.name: slot.values[value - 1] for slot, value in values if value}
        return Command(objective.intents[ids[0]], slots, math.exp(log_probs.sum(dtype=np.float64)))

    @functools.cached_property
    def _best(self):
        experiment = self.run.experiment
        classify = experiment.objective.classifier(experiment.model, experiment.frontend)

        @jax.jit
        def best(params, batch):
            log_probs = [log_probs_BxNxC[:, 0] for log_probs_BxNxC in classify(params, batch, None)]
            return (
                jax.numpy.stack([label.argmax(-1) for label in log_probs], axis=1),
                jax.numpy.stack([label.max(-1) for label in log_probs], axis=1),
            )

        return best

    def _compute(self, batch):
        model, mel = self.run.experiment.model, self.run.experiment.frontend.mel
        frames_B = model.num_frames(mel.num_frames(np.asarray(batch["audio_length"])))
        return *self._best(self.run.params, batch), frames_B


def described(command: Command) -> dict[str, Any]:
    """Returns a command as an object of JSON."""
    line = {"intent": command.intent, "slots": command.slots, "confidence": round(command.confidence, 4)}
    return {**line, "text": command.text} if command.text else line


def understand_files(checkpoint: Positional[Path], files: Positional[tuple[str, ...]], threshold: float = 0.0) -> None:
    """Finds intent and slots of recordings of commands; prints one line of JSON for each.

    Args:
      checkpoint: a run trained by intent: its directory, or one of its checkpoints/<step> folders.
      files: audio files of any format, rate and number of channels, of one command each.
      threshold: confidence below which a recording is no command: its intent is null.
    """
    classifier = CommandClassifier.load(checkpoint)

    def describe(file: str | os.PathLike) -> dict[str, Any]:
        (command,) = classifier.understand([file])
        return {"file": file, **described(command.above(threshold))}

    print_lines(files, describe)
