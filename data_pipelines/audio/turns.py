"""Turns of a speaker, cut out of a recording by its level."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int16

LEVEL = 0.01  # RMS of what is loud, in full scale: -40 dB
PAUSE = 0.8  # seconds of quiet that end a turn
LONGEST = 20.0  # seconds of a turn

Samples = Int16[np.ndarray, " samples"]


def next_turn(blocks: Iterable[Samples], rate: int, timeout: float) -> Samples | None:
    """Cuts the next turn of the user out of what a microphone records: from the first sound to a pause of 0.8 s.

    Args:
      blocks: 16-bit samples, in order.
      timeout: seconds without a sound after which there is no turn.

    Returns:
      The samples; None if nothing is said.

    Raises:
      EOFError: the recording was ended.
    """
    before, turn, quiet, waited = np.zeros(0, np.int16), list[np.ndarray](), 0.0, 0.0
    for block in blocks:
        seconds = len(block) / rate
        is_loud = np.sqrt(np.mean(np.square(block, dtype=np.float64))) > LEVEL * 2**15
        if not turn:
            if is_loud:
                turn = [before, block]
            before, waited = block, waited + seconds
            if waited >= timeout and not turn:
                return None
            continue
        turn.append(block)
        quiet = 0.0 if is_loud else quiet + seconds
        if quiet >= PAUSE or sum(map(len, turn)) >= LONGEST * rate:
            return np.concatenate(turn)
    raise EOFError
