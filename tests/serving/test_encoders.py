"""Encoders of speech: files that other programs read, whatever parts the samples come in."""

import io
import itertools
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio import decode
from data_pipelines.audio.wav import to_int16
from jax_speechlm.serving.encoders import ENCODERS, PCM_RATE

EXACT = ("wav", "flac", "pcm")


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(format: str, rate: int, parts) -> bytes:
    encoder = ENCODERS[format](rate)
    return b"".join(encoder.encode(part) for part in parts) + encoder.finish()


def samples_of(content: bytes, format: str, rate: int) -> np.ndarray:
    """What a decoder makes of a file, at `rate`."""
    if format == "pcm":
        content = content_of_wav(np.frombuffer(content, "<i2"), PCM_RATE)
    return decode.decode(content, rate=rate)


def content_of_wav(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("format", ENCODERS)
def test_what_is_decoded_is_what_was_encoded(format, rate):
    samples = tone(rate)
    content = encode(format, rate, np.array_split(samples, 7))
    decoded = samples_of(content, format, rate)
    if format in ("wav", "flac") or (format == "pcm" and rate == PCM_RATE):
        np.testing.assert_array_equal(decoded, to_int16(samples))
        return
    assert len(samples) <= len(decoded) + rate * 0.01  # the codecs pad to whole frames
    assert len(decoded) <= len(samples) + rate * 0.2
    middle = decoded[rate // 4 : 3 * rate // 4] / 32768
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * rate / len(middle) == pytest.approx(440, abs=3)
    level = 0.95 if format == "mp3" else 1.0  # LAME lowers its input by so much, against clipping
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 * level / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus"])
def test_other_programs_read_the_length(format):
    samples = tone(16_000, 1.5)
    read, rate = soundfile.read(io.BytesIO(encode(format, 16_000, [samples])))
    assert len(read) / rate == pytest.approx(1.5, abs=0.12)


def test_python_itself_reads_wav():
    samples = tone(16_000, 0.5)
    with wave.open(io.BytesIO(encode("wav", 16_000, [samples]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        assert file.readframes(file.getnframes()) == to_int16(samples).tobytes()


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 8000), max_size=6), format=st.sampled_from(list(ENCODERS)))
def test_the_parts_that_samples_come_in_change_nothing(cuts, format):
    samples = tone(16_000, 0.5)
    edges = [0, *sorted(cuts), len(samples)]
    parts = [samples[start:end] for start, end in itertools.pairwise(edges)]
    if format == "opus":  # a stream of Ogg has a number of its own, drawn at random
        whole, cut = (samples_of(encode(format, 16_000, each), format, 16_000) for each in ([samples], parts))
        np.testing.assert_array_equal(cut, whole)
    else:
        assert encode(format, 16_000, parts) == encode(format, 16_000, [samples])


@pytest.mark.parametrize("format", [format for format in ENCODERS if format != "flac"])
def test_the_first_bytes_do_not_wait_for_the_last_samples(format):
    encoder = ENCODERS[format](16_000)
    first = encoder.encode(tone(16_000, 1.0))
    total = len(first) + len(encoder.encode(tone(16_000, 1.0))) + len(encoder.finish())
    assert len(first) > 0.35 * total


@pytest.mark.parametrize("format", ENCODERS)
def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap(format):
    samples = np.clip(3 * tone(24_000), -1.5, 1.5)
    decoded = samples_of(encode(format, 24_000, [samples]), format, 24_000)
    quarter = slice(6000, 18_000)
    level = np.sqrt(np.mean((decoded[quarter] / 32768) ** 2))
    assert level > 0.75  # 0.84 of a clipped tone, less where LAME lowers it; 0.65 of one that wraps


def test_no_samples_are_no_error():
    for format in ENCODERS:
        encode(format, 16_000, [])
        encode(format, 16_000, [np.zeros(0, np.float32)])
