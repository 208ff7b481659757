"""Test data in noise: batches of utterances with noise at a given ratio."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int16

from data_pipelines.batching.noise import NoiseReader
from data_pipelines.batching.speech import Batch

_LOUDEST = 32767


def add_noise(
    samples: Int16[np.ndarray, " samples"], noise: Int16[np.ndarray, " samples"], snr_db: float
) -> Int16[np.ndarray, " samples"]:
    """Returns speech with noise, scaled such that 10 log10 of the ratio of their powers is `snr_db`.

    A sum that would clip is made quieter as a whole. Without power of either the speech is returned.
    """
    speech_power, noise_power = (np.mean(np.square(x, dtype=np.float64)) if len(x) else 0.0 for x in (samples, noise))
    if not speech_power or not noise_power:
        return samples
    mixed = samples + noise * np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))
    return np.rint(mixed * min(1.0, _LOUDEST / np.abs(mixed).max())).astype(np.int16)


def noisy(batches: Iterable[Batch], noise: NoiseReader, snr_db: float) -> Iterator[Batch]:
    """Adds noise to batches of one utterance a row; a row's noise depends on its `example_id` alone."""
    for batch in batches:
        audio = batch["audio"].copy()
        for row, (example_id, length) in enumerate(zip(batch["example_id"], batch["audio_length"], strict=True)):
            if example_id >= 0:
                stretch = noise.stretch(0, int(example_id), int(length))
                audio[row, :length] = add_noise(audio[row, :length], stretch, snr_db)
        yield batch | {"audio": audio}
