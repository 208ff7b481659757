"""Room impulse responses: simulated by the image method on device, or read from files."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from data_pipelines.audio.decode import decode

TAIL = 0.25
"""Seconds after the direct sound that a response has."""

_SOUND = 343.0  # m/s
_SMALLEST, _LARGEST = (3.0, 3.0, 2.5), (10.0, 8.0, 4.0)  # m; length, width, height of rooms
_WALL = 0.3  # m; least distance of source and microphone from a wall
_APART = 0.3  # m; their least distance


def draw_response(key: PRNGKeyArray, reverberation: tuple[float, float], sample_rate: int) -> Float[Array, " taps"]:
    """Draws a shoebox room with a source and a microphone in it, and returns the response between them.

    Args:
      reverberation: range of the time in which sound decays by 60 dB, in seconds.
    """
    size_key, source_key, microphone_key, time_key = jax.random.split(key, 4)
    size = jax.random.uniform(size_key, (3,), minval=jnp.array(_SMALLEST), maxval=jnp.array(_LARGEST))
    source, microphone = (
        jax.random.uniform(each, (3,), minval=_WALL, maxval=size - _WALL) for each in (source_key, microphone_key)
    )
    low, high = reverberation
    seconds = jax.random.uniform(time_key, (), minval=low, maxval=high)
    return room_response(size, source, microphone, seconds, sample_rate)


def room_response(
    size: Float[Array, "3"],
    source: Float[Array, "3"],
    microphone: Float[Array, "3"],
    reverberation: Float[Array, ""],
    sample_rate: int,
) -> Float[Array, " taps"]:
    """Computes the response of a shoebox room by the image method (Allen and Berkley 1979).

    All walls reflect the same share, by Eyring's formula for the reverberation time, with the opposite sign: impulses
    of one sign would add up to a slow wave that decays later than the sound (Lehmann and Johansson 2008). Delays are
    rounded to samples.

    Args:
      size: of the room, in metres; at least 3 x 3 x 2.5.
      source, microphone: their places.
      reverberation: time in which sound decays by 60 dB, in seconds.

    Returns:
      The response from the direct sound on, relative to it: its first value is 1.
    """
    taps = round(TAIL * sample_rate)
    volume, surface = jnp.prod(size), 2 * (size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    log_reflected = -0.5 * 24 * math.log(10) / _SOUND * volume / (surface * reverberation)
    direct = jnp.maximum(jnp.linalg.norm(source - microphone), _APART)
    squares, reflections = [], []
    for axis in range(3):
        # Images are at 2 m L + x, of |2 m| reflections, and mirrored at 2 m L - x, of |2 m - 1|.
        reach = math.ceil(TAIL * _SOUND / (2 * _SMALLEST[axis])) + 1
        m = jnp.arange(-reach, reach + 1)
        same, mirrored = 2 * m * size[axis] + source[axis], 2 * m * size[axis] - source[axis]
        squares.append(jnp.square(jnp.concatenate([same, mirrored]) - microphone[axis]))
        reflections.append(jnp.abs(jnp.concatenate([2 * m, 2 * m - 1])))

    def over_images(parts: list[Array]) -> Array:
        return (parts[0][:, None, None] + parts[1][:, None] + parts[2]).reshape(-1)

    distance = jnp.maximum(jnp.sqrt(over_images(squares)), direct)
    walls = over_images(reflections)
    amplitude = direct / distance * jnp.exp(log_reflected * walls) * jnp.where(walls % 2, -1, 1)
    delay = jnp.round((distance - direct) * sample_rate / _SOUND).astype(jnp.int32)
    return jnp.zeros(taps).at[delay].add(amplitude, mode="drop")


@functools.cache
def read_responses(folder: str, sample_rate: int) -> np.ndarray:
    """Reads the responses of a folder's audio files, float32 [responses, taps], from the direct sound on.

    Raises:
      ValueError: the folder has no audio, or a file is silent.
      AudioError: a file cannot be read.
    """
    taps, responses = round(TAIL * sample_rate), []
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".wav", ".flac")):
        samples = decode(path, rate=sample_rate).astype(np.float32)
        peak = np.abs(samples).max()
        if not peak:
            raise ValueError(f"{path}: a room impulse response without sound: record it again or remove it")
        start = int(np.argmax(np.abs(samples) >= 0.7 * peak))
        response = np.zeros(taps, np.float32)
        rest = samples[start : start + taps] / samples[start]
        response[: len(rest)] = rest
        responses.append(response)
    if not responses:
        raise ValueError(f"frontend.augment.rooms: {folder} has no .wav or .flac files with room impulse responses")
    return np.stack(responses)
