"""Voice activity detection by a model trained by `frame_classification`."""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.audio.decode import AudioError
from data_pipelines.core.errors import DataError
from jax_speechlm.inference.predictor import RunPredictor, rows_of_parts
from jax_speechlm.inference.segmentation import Recording, blocks_of, samples_in, windows
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

        Args:
          max_seconds: longer recordings are cut at quiet places and their parts encoded separately.

        Raises:
          AudioError: the recording cannot be read.
        """
        found, waiting = [], []
        rate = self.run.experiment.sample_rate
        blocks, longest = blocks_of(recording, rate), samples_in(max_seconds, rate)
        for window in windows(blocks, longest, sample_rate=rate, multiple=self.frame_samples):
            waiting.append(window)
            if len(waiting) == _WINDOWS:
                found += self._heard(waiting)
                waiting = []
        return np.concatenate([*found, *self._heard(waiting), np.zeros(0, np.float32)])

    def _heard(self, parts: Sequence) -> list[Float[np.ndarray, " _"]]:
        """Returns the probabilities per window, padded with the last value to the frames in the window's samples."""
        compute = functools.partial(self._speech, self.run.params)
        probabilities = []
        for part, (speech_T, frames) in zip(
            parts, rows_of_parts(compute, [each.samples for each in parts]), strict=True
        ):
            want = (part.end - part.start) // self.frame_samples
            known = speech_T[:frames] if frames else np.zeros(1, np.float32)
            probabilities.append(np.pad(known[:want], (0, max(0, want - len(known))), mode="edge"))
        return probabilities

    def speech_times(
        self, recording: Recording, threshold: float = 0.5, max_seconds: float = _MAX_SECONDS
    ) -> list[tuple[float, float]]:
        """Finds the spans of speech; pauses shorter than `objective.min_pause` do not split a span.

        Args:
          threshold: least probability of a frame of speech.
          max_seconds: see `probabilities`.

        Returns:
          Start and end of the spans in seconds, in order.

        Raises:
          AudioError: the recording cannot be read.
        """
        is_speech = self.probabilities(recording, max_seconds) >= threshold
        edges = np.flatnonzero(np.diff(is_speech.astype(np.int8), prepend=0, append=0)) * self.frame_samples
        edges = edges / self.run.experiment.sample_rate
        spans: list[tuple[float, float]] = []
        for start, end in edges.reshape(-1, 2).tolist():
            if spans and start - spans[-1][1] < self.run.experiment.objective.min_pause:
                start = spans.pop()[0]
            spans.append((start, end))
        return spans

    @functools.cached_property
    def _speech(self):
        experiment = self.run.experiment
        _, logits = experiment.objective.classifier(experiment.model, experiment.frontend)

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
    detector, failed = VoiceActivity.load(checkpoint), 0
    for file in files:
        try:
            spans = detector.speech_times(file, threshold, max_seconds)
        except AudioError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        line = {"file": str(file), "speech": [[round(time, 3) for time in span] for span in spans]}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    if failed:
        raise DataError(f"{failed} of {len(files)} files could not be read")
