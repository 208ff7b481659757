"""Samples of the microphone, by the package sounddevice."""

import queue
import signal
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int16

from data_pipelines.audio.decode import AudioError

_BLOCKS_A_SECOND = 20


def blocks(rate: int) -> Iterator[Int16[np.ndarray, " samples"]]:
    """Records from the default microphone until Ctrl-C, on the main thread.

    Nothing is lost while the caller is busy: blocks wait in a queue.

    Args:
      rate: in Hz.

    Raises:
      AudioError: the package, its library or a microphone is missing.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise AudioError(
            "microphone", "the package sounddevice is not installed", "pip install -e '.[microphone]'"
        ) from error
    except OSError as error:  # on Linux the package comes without the library
        raise AudioError(
            "microphone", f"sounddevice does not load: {error}", "install PortAudio, such as apt install libportaudio2"
        ) from error
    waiting: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()  # None at the end
    before = signal.signal(signal.SIGINT, lambda *_: waiting.put(None))
    try:
        with sounddevice.InputStream(
            samplerate=rate,
            blocksize=rate // _BLOCKS_A_SECOND,
            channels=1,
            dtype="int16",
            callback=lambda samples, *_: waiting.put(samples[:, 0].copy()),
        ):
            while (samples := waiting.get()) is not None:
                yield samples
    except sounddevice.PortAudioError as error:
        raise AudioError(
            "microphone", str(error), "connect one, or name audio files instead; python -m sounddevice lists devices"
        ) from error
    finally:
        signal.signal(signal.SIGINT, before)
