"""Voice activity detection by a model trained by `frame_classification`."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from jax_speechlm.inference.predictor import RunPredictor, print_lines, rows_of_parts
from jax_speechlm.inference.segmentation import AudioWindow, Recording, blocks_of, samples_in, windows
from jax_speechlm.objectives.heads.frame_classification import FrameClassification

_MAX_SECONDS = 30.0
_WINDOWS = 32  # encoded together


class VoiceActivity(RunPredictor):
    """Finds speech in recordings with a model trained by `frame_classification`."""

    objective = FrameClassification
    purpose = "detect speech"
    abilities = ("speech_times", "embed")

    @property
    def frame_samples(self) -> int:
        """Distance of frames in samples."""
        return self.run.experiment.frame_samples

    def probabilities(self, recording: Recording, max_seconds: float = _MAX_SECONDS) -> Float[np.ndarray, " time"]:
        """Computes the probability of speech, that is of any class but the first, per frame.

        Recordings longer than `max_seconds` are cut at quiet places. Raises `AudioError` if it cannot be read.
        """
        rate = self.run.experiment.sample_rate
        blocks, longest = blocks_of(recording, rate), samples_in(max_seconds, rate)
        waiting = windows(blocks, longest, sample_rate=rate, multiple=self.frame_samples)
        probabilities = [np.zeros(0, np.float32)]
        while group := list(itertools.islice(waiting, _WINDOWS)):
            probabilities += self._of_windows(group)
        return np.concatenate(probabilities)

    def _of_windows(self, group: Sequence[AudioWindow]) -> list[Float[np.ndarray, " _"]]:
        """Returns the probabilities per window, padded with the last value to the frames in the window's samples."""
        rows = rows_of_parts(functools.partial(self._speech, self.run.params), [window.samples for window in group])
        probabilities = []
        for window, (speech_T, frames) in zip(group, rows, strict=True):
            wanted = (window.end - window.start) // self.frame_samples
            known = speech_T[:frames] if frames else np.zeros(1, np.float32)
            probabilities.append(np.pad(known[:wanted], (0, max(0, wanted - len(known))), mode="edge"))
        return probabilities

    def speech_times(
        self, recording: Recording, threshold: float = 0.5, max_seconds: float = _MAX_SECONDS
    ) -> list[tuple[float, float]]:
        """Finds the spans of speech; pauses shorter than `objective.min_pause` do not split a span.

        Returns:
          Start and end of the spans in seconds, in order.
        """
        is_speech = self.probabilities(recording, max_seconds) >= threshold
        changes = np.diff(is_speech.astype(np.int8), prepend=0, append=0)
        edges = np.flatnonzero(changes) * self.frame_samples / self.run.experiment.sample_rate
        spans: list[tuple[float, float]] = []
        for start, end in edges.reshape(-1, 2).tolist():
            if spans and start - spans[-1][1] < self.run.experiment.objective.min_pause:
                start = spans.pop()[0]
            spans.append((start, end))
        return spans

    @functools.cached_property
    def _speech(self):
        experiment = self.run.experiment
        logits = experiment.objective.classifier(experiment.model, experiment.frontend)

        def speech(params, batch):
            logits_BxTxC, frames_B = logits(params, batch, None)
            return 1 - jax.nn.softmax(logits_BxTxC.astype(jnp.float32))[..., 0], frames_B

        return jax.jit(speech)


def segment_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    threshold: float = 0.5,
    max_seconds: float = _MAX_SECONDS,
) -> None:
    """Finds speech in audio files; prints one line of JSON per file, {"file": ..., "speech": [[0.2, 1.7], ...]}.

    Args:
      checkpoint: a run trained by frame_classification: its directory, or one of its checkpoints/<step> folders.
      files: audio of any format, sample rate, length and number of channels.
      threshold: least probability of a frame of speech.
      max_seconds: longer recordings are cut at quiet places into parts of at most this length.
    """
    detector = VoiceActivity.load(checkpoint)

    def describe(file: Path) -> dict[str, Any]:
        spans = detector.speech_times(file, threshold, max_seconds)
        return {"file": str(file), "speech": [[round(time, 3) for time in span] for span in spans]}

    print_lines(files, describe)
