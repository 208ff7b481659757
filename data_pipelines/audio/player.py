"""Sound through the system's player."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio.wav import write_wav
from data_pipelines.core.errors import DataError

_PLAYERS = (["pw-play"], ["paplay"], ["aplay", "-q"], ["afplay"], ["play", "-q"], ["ffplay", "-autoexit", "-nodisp"])


def find_player(purpose: str, remedy: str) -> list[str]:
    """Returns the command line of the first player that is installed.

    Args:
      purpose, remedy: what needs it, and what to do without, for the error.

    Raises:
      DataError: there is none.
    """
    for command in _PLAYERS:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in _PLAYERS)
    raise DataError(f"{purpose} needs one of {names}, and none is installed: {remedy}")


def play_sound(player: list[str], samples: NDArray[np.float32], rate: int) -> None:
    """Plays samples in [-1, 1) to their end.

    Args:
      player: as of `find_player`.
      rate: in Hz.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sound.wav"
        write_wav(file, samples, rate)
        subprocess.run([*player, str(file)], check=False)
