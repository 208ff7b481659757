"""Any audio to 16 kHz mono int16."""

import contextlib
import io

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio import decode as audio
from data_pipelines.audio import formats
from data_pipelines.audio.decode import AudioError, AudioTooLongError, decode, decode_flac, encode_flac, measure

RATE = audio.DEFAULT_SAMPLE_RATE


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    signal = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.repeat(signal[:, None], channels, axis=1)


def encoded(samples: np.ndarray, rate: int, file_format: str, subtype: str | None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def encoded_by_ffmpeg(samples: np.ndarray, rate: int, container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.int16(samples[:, 0] * 2**15)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return buffer.getvalue()


def assert_is_tone(samples: np.ndarray, seconds: float = 1.0, hertz: float = 440.0) -> None:
    assert samples.dtype == np.int16
    assert samples.ndim == 1
    assert abs(len(samples) / RATE - seconds) < 0.1  # mp3 and AAC pad
    spectrum = np.abs(np.fft.rfft(samples.astype(float)))
    assert abs(np.argmax(spectrum) * RATE / len(samples) - hertz) < 3
    assert 0.45 < np.abs(samples[RATE // 4 : RATE // 2]).max() / 2**15 < 0.55


@pytest.mark.parametrize(
    ("rate", "channels", "file_format", "subtype"),
    [
        (8_000, 1, "WAV", "PCM_16"),
        (44_100, 2, "WAV", "PCM_24"),
        (192_000, 8, "WAV", "FLOAT"),
        (48_000, 8, "FLAC", "PCM_16"),
        (22_050, 2, "OGG", "VORBIS"),
        (48_000, 1, "OGG", "OPUS"),
        (11_025, 1, "MP3", "MPEG_LAYER_III"),
    ],
)
def test_every_format_rate_and_channel_count_gives_the_same_tone(rate, channels, file_format, subtype):
    content = encoded(tone(rate, channels=channels), rate, file_format, subtype)
    assert_is_tone(decode(content))


@pytest.mark.parametrize(
    ("rate", "container", "codec", "suffix"),
    [(16_000, "g722", "g722", ".g722"), (44_100, "ipod", "aac", ".m4a"), (8_000, "wav", "pcm_mulaw", ".wav")],
)
def test_formats_that_need_ffmpeg(tmp_path, rate, container, codec, suffix):
    path = tmp_path / f"tone{suffix}"
    samples = tone(rate)
    if codec == "aac":  # wants planar float
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as output:
            stream = output.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.float32(samples.T), format="fltp", layout="mono")
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_bytes(encoded_by_ffmpeg(samples, rate, container, codec))
    assert_is_tone(decode(path))


def test_channels_are_averaged():
    left_only = tone(RATE, channels=2) * [1, 0]
    np.testing.assert_allclose(decode(encoded(left_only, RATE, "WAV", "PCM_16")), tone(RATE)[:, 0] * 2**14, atol=1)


def test_16_khz_16_bit_comes_back_unchanged():
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, RATE).astype(np.int16)
    np.testing.assert_array_equal(decode(encoded(samples, RATE, "WAV", "PCM_16")), samples)
    np.testing.assert_array_equal(decode_flac(encode_flac(samples)), samples)


@pytest.mark.parametrize(("file_format", "subtype"), [("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_reading_in_blocks_equals_reading_at_once(tmp_path, file_format, subtype):
    def in_this_process(**options) -> list[np.ndarray]:
        with path.open("rb") as file:
            blocks = formats.blocks(file.fileno(), "", formats.Damage(), **options)
            return list(audio.resampled(blocks, "", np.inf))

    path = tmp_path / "noise"
    path.write_bytes(encoded(np.random.default_rng(0).normal(0, 0.1, (44_100, 2)), 44_100, file_format, subtype))
    at_once = decode(path)
    np.testing.assert_array_equal(np.concatenate(in_this_process()), at_once)
    in_blocks = in_this_process(block_samples=1_000)
    assert len(in_blocks) > 20
    np.testing.assert_allclose(np.concatenate(in_blocks), at_once, atol=1)


def test_resampling_is_soxr_of_the_whole():
    samples = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    expected = soxr.resample(samples, 44_100, RATE, quality="HQ") * 2**15
    np.testing.assert_allclose(decode(encoded(samples, 44_100, "WAV", "FLOAT")), expected, atol=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not audio at all" * 100, "cannot be decoded"),
        (encoded(np.zeros((0, 1)), RATE, "WAV", "PCM_16"), "no samples"),
        (encoded(tone(RATE), RATE, "FLAC", "PCM_16")[:5_000], "cannot be decoded"),
        (encoded(np.full((RATE, 1), np.nan), RATE, "WAV", "FLOAT"), "samples that are not finite"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_bad_audio_is_named_with_a_remedy(tmp_path, content, reason, as_file):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"bad\.wav: .+; .+") as caught:
        decode(path) if as_file else decode(content, name="bad.wav")
    assert caught.value.reason == reason


def test_missing_file():
    with pytest.raises(AudioError, match=r"nowhere\.wav: no such file"):
        decode("nowhere.wav")


def test_hour_long_audio_is_refused_early():
    def endless():
        for read in range(100):
            assert read < 12, "read on after the limit"
            yield RATE, np.full(RATE, 0.1, np.float32)

    with pytest.raises(AudioTooLongError, match="over 10 s"):
        list(audio.resampled(endless(), "", 10))


@settings(max_examples=60)
@given(st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]), st.integers(0, 2**32), st.floats(0.05, 1.0))
def test_damaged_files_never_raise_anything_else(file_format, seed, share_kept):
    content = bytearray(encoded(tone(22_050, 0.2), 22_050, file_format, None))
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(content), 8):
        content[place] = generator.integers(256)
    with contextlib.suppress(AudioError):
        assert len(decode(bytes(content[: int(len(content) * share_kept)]))) > 0


def test_levels():
    clean = np.int16(tone(RATE)[:, 0] * 2**15)
    half_silent = np.concatenate([clean, np.zeros_like(clean)])
    clipped = np.clip(clean.astype(int) * 4, -(2**15), 2**15 - 1).astype(np.int16)
    assert measure(clean).peak == pytest.approx(0.5, rel=1e-3)
    assert measure(clean).clipped_share == measure(clean).silence_share == 0
    assert measure(half_silent).silence_share == pytest.approx(0.5)
    assert not measure(half_silent).is_mostly_silence
    assert measure(clipped).is_clipped
    assert measure(clipped).clipped_share == pytest.approx(2 / 3, abs=0.02)  # |4 * 0.5 sin| > 1 two thirds of the time
    assert measure(np.zeros(1, np.int16)).is_silent
    assert not measure(clean).is_silent


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_stay_apart(tmp_path, rate):
    times = np.arange(rate // 2) / rate
    both = np.stack([0.5 * np.sin(2 * np.pi * pitch * times) for pitch in (300, 700)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, rate)
    apart = np.concatenate(list(audio.stream(tmp_path / "a.wav", mix=False)))
    assert apart.shape == (8_000, 2)
    np.testing.assert_allclose(apart.mean(axis=1), audio.decode(tmp_path / "a.wav"), atol=1)
    spectra = np.abs(np.fft.rfft(apart.astype(float), axis=0))
    assert (2 * np.argmax(spectra, axis=0)).tolist() == [300, 700]
    kept = np.concatenate(list(audio.stream(tmp_path / "a.wav", rate=rate, mix=False)))
    np.testing.assert_array_equal(kept, soundfile.read(tmp_path / "a.wav", dtype="int16")[0])
