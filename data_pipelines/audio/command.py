"""Sound files that a shell command writes, as Kaldi's `wav.scp` may list them."""

import subprocess
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio.decode import AudioError, decode
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE

_MAX_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Command:
    """A sound file that a command writes to its standard output. It runs whatever the list of it says.

    Attributes:
      folder: where the command runs.
      listed_in: file and line that contain the command, for messages.
    """

    command: str
    folder: str
    listed_in: str

    def __str__(self) -> str:
        return self.listed_in

    def content(self) -> bytes:
        """Runs the command. Raises `AudioError` if it fails or writes nothing."""
        options = {"cwd": self.folder, "stdin": subprocess.DEVNULL, "capture_output": True, "timeout": _MAX_SECONDS}
        try:
            done = subprocess.run(["sh", "-c", self.command], check=False, **options)
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise AudioError(self.listed_in, "command fails", f"`{self.command}`: {error}") from error
        if done.returncode or not done.stdout:
            message = done.stderr.decode(errors="replace").strip()[-300:] or "it writes nothing"
            remedy = f"`{self.command}` ends with status {done.returncode} in {self.folder}: {message}"
            raise AudioError(self.listed_in, "command fails", remedy)
        return done.stdout

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        return decode(self.content(), name=self.listed_in, rate=rate, max_seconds=max_seconds)

    def fingerprint(self) -> str:
        return f"{self.folder} {self.command}"
