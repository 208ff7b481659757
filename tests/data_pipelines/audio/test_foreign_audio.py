"""Files from elsewhere: decoded whole whatever their headers state, in a process that they cannot take along."""

import contextlib
import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio import decode as audio
from data_pipelines.audio import process as audio_process
from data_pipelines.audio.decode import AudioError, AudioTooLongError, decode, encode_flac
from tests.data_pipelines.audio.foreign_audio import claiming, muxed, tone, written

RATE = audio.DEFAULT_SAMPLE_RATE


def loudest_hertz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples.astype(float)))) * RATE / len(samples))


def flac_stating(num_samples: int) -> bytes:
    content = bytearray(encode_flac(np.int16(tone(RATE, 2.0) * 2**15)))
    content[21] = content[21] & 0xF0 | num_samples >> 32
    content[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


def wav_stating(num_bytes: int) -> bytes:
    content = bytearray(written(tone(RATE, 2.0), RATE, "WAV", "PCM_16"))
    content[4:8] = content[40:44] = num_bytes.to_bytes(4, "little")
    return bytes(content)


def aiff_stating(num_samples: int) -> bytes:
    content = bytearray(written(tone(RATE, 2.0), RATE, "AIFF", "PCM_16"))
    place = content.index(b"COMM") + 10
    content[place : place + 4] = num_samples.to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("file_format", "subtype", "rates"),
    [
        ("OGG", "VORBIS", (RATE, RATE)),
        ("OGG", "VORBIS", (RATE, 44_100)),
        ("OGG", "OPUS", (48_000, 48_000)),
        ("OGG", "OPUS", (48_000, 16_000)),
        ("MP3", "MPEG_LAYER_III", (44_100, 44_100)),
        ("MP3", "MPEG_LAYER_III", (44_100, 24_000)),
    ],
)
def test_joined_streams_are_decoded_to_the_end(file_format, subtype, rates):
    first, second = (
        written(tone(rate, 1.0, hertz), rate, file_format, subtype)
        for rate, hertz in zip(rates, (440.0, 880.0), strict=True)
    )
    samples = decode(first + second + first)
    assert len(samples) / RATE == pytest.approx(3, abs=0.2)
    for start, hertz in ((0.25, 440), (1.3, 880), (2.3, 440)):
        part = samples[round(start * RATE) : round((start + 0.5) * RATE)]
        assert loudest_hertz(part) == pytest.approx(hertz, abs=5)


@pytest.mark.parametrize("num_samples", [3_000, 44_100, 441_000])
def test_vorbis_of_one_page_is_decoded_to_its_end(num_samples):
    content = io.BytesIO()
    soundfile.write(content, tone(44_100, 11.0)[:num_samples], 44_100, format="OGG", subtype="VORBIS")
    assert len(decode(content.getvalue())) == pytest.approx(num_samples * RATE / 44_100, abs=1)


@pytest.mark.parametrize(
    "content",
    [
        flac_stating(0),
        flac_stating(2**36 - 1),
        wav_stating(0),
        wav_stating(2**32 - 1),
        wav_stating(2**31 - 1),
        aiff_stating(0),
    ],
    ids=["flac 0", "flac absurd", "wav 0", "wav -1", "wav absurd", "aiff 0"],
)
def test_wrong_frame_counts_lose_nothing(content, caplog):
    np.testing.assert_allclose(decode(content), tone(RATE, 2.0) * 2**15, atol=1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("container", "codec", "rate", "suffix"),
    [
        ("flac", "flac", RATE, ".flac"),
        ("mp3", "libmp3lame", 44_100, ".mp3"),
        ("adts", "aac", 44_100, ".aac"),
        ("ipod", "aac", 44_100, ".m4a"),
        ("ogg", "libopus", 48_000, ".opus"),
        ("matroska", "libopus", 48_000, ".mka"),
    ],
)
def test_a_damaged_packet_costs_no_more_than_itself(container, codec, rate, suffix, tmp_path, caplog):
    rng = np.random.default_rng(0)
    samples = tone(rate, 8.19) + rng.normal(0, 0.02, round(8.19 * rate))
    content = bytearray(muxed([(0.0, samples)], rate, container, codec))
    middle = len(content) // 2
    content[middle : middle + 60] = rng.bytes(60)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    decoded = decode(path)
    assert len(decoded) / RATE == pytest.approx(8.19, abs=0.1)
    for start in (1, 6):
        assert loudest_hertz(decoded[start * RATE : (start + 1) * RATE]) == pytest.approx(440, abs=2)
    if codec in ("flac", "aac"):  # the other decoders conceal it
        assert f"{path}: " in caplog.text
        assert "s of audio cannot be decoded and are skipped" in caplog.text


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "pcm_s16le"), ("matroska", "libopus"), ("mp4", "aac"), ("webm", "libopus")]
)
def test_late_starts_and_gaps_keep_their_times(container, codec):
    samples = decode(muxed([(2.0, tone(48_000, 1.0)), (4.5, tone(48_000, 1.0))], 48_000, container, codec))
    assert len(samples) / RATE == pytest.approx(5.5, abs=0.1)
    levels = np.abs(samples[: 55 * RATE // 10].astype(int)).reshape(-1, RATE // 10).max(axis=1)
    loud = levels > 5_000
    assert loud[21:29].all()
    assert loud[46:54].all()
    assert not loud[:19].any()
    assert not loud[32:43].any()


def children() -> list[int]:
    """Decoding processes of this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                command = (status.parent / "cmdline").read_bytes()
                found += [int(status.parent.name)] if b"data_pipelines.audio.worker" in command else []
    return found


@pytest.mark.parametrize(("num_samples", "tracks"), [(85_000_000, 1), (20_000_000, 4), (2**32 - 2, 1)])
def test_claimed_samples_take_no_memory(num_samples, tracks):
    started = time.monotonic()
    with pytest.raises(AudioError, match=r"claims\.mp4: .*; "):
        decode(claiming(num_samples, tracks), name="claims.mp4")
    assert time.monotonic() - started < 10
    for child in children():
        peak = Path(f"/proc/{child}/status").read_text().split("VmHWM:")[1].split()[0]
        assert int(peak) < 500_000  # KiB


def test_the_length_limit_holds_while_decoding():
    hour = written(np.zeros(3600 * 8_000), 8_000, "FLAC")
    assert len(hour) < 200_000
    with pytest.raises(AudioTooLongError, match=r"long\.flac: .*over 10 s"):
        decode(hour, name="long.flac", max_seconds=10)


@pytest.mark.parametrize(
    ("fatal", "reason"),
    [(signal.SIGSEGV, "crashes the decoder"), (signal.SIGXCPU, "takes too much processor time to decode")],
)
def test_a_crash_is_an_error_of_its_file_alone(fatal, reason):
    long, short = written(tone(RATE, 400), RATE, "WAV"), written(tone(RATE, 1), RATE, "WAV")
    assert len(decode(short)) == RATE
    process = audio_process._pool._idle[-1]._process.pid  # decodes next; earlier tests may have left others
    blocks = audio.stream(long, name="crash.wav")
    next(blocks)
    other = audio.stream(written(tone(RATE, 400), RATE, "WAV"), name="other.wav")
    length = len(next(other))
    os.kill(process, fatal)
    with pytest.raises(AudioError, match=r"crash\.wav") as caught:
        list(blocks)
    assert caught.value.reason == reason
    assert length + sum(map(len, other)) == 400 * RATE
    assert len(decode(short)) == RATE


def test_whoever_no_longer_waits_ends_the_decoding():
    class NotWanted(Exception):
        pass

    def check():
        if stopped.is_set():
            raise NotWanted

    stopped = threading.Event()
    blocks = audio.stream(written(tone(RATE, 400), RATE, "WAV"), check=check)
    next(blocks)
    stopped.set()
    with pytest.raises(NotWanted):
        list(blocks)


def test_decoding_processes_load_decoders_alone():
    decode(written(tone(RATE, 0.1), RATE, "WAV"))
    for child in children():
        loaded = Path(f"/proc/{child}/maps").read_text()
        assert "libav" in loaded
        assert not any(name in loaded for name in ("jaxlib", "tensorflow", "torch"))


def test_a_forked_process_has_its_own_decoders():
    content = written(tone(RATE, 0.1), RATE, "WAV")
    decode(content)
    assert audio_process._pool._idle
    audio_process._pool.clear()  # as after a fork
    assert len(decode(content)) == RATE // 10


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{file}\n#EXT-X-ENDLIST\n",
    "list.m3u": "#EXTM3U\n{file}\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {file}\n",
    "list.mpd": '<?xml version="1.0"?><MPD type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet '
    'mimeType="audio/wav"><Representation id="1" bandwidth="1"><BaseURL>{file}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "list.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{file}\n#EXT-X-ENDLIST\n",
    "list.flac": "ffconcat version 1.0\nfile {file}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("prefix", ["", "file:", "{folder}/", "file://{folder}/"])
def test_playlists_open_no_other_file(tmp_path, name, prefix):
    (tmp_path / "secret.mp3").write_bytes(written(tone(44_100), 44_100, "MP3"))
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(file=prefix.format(folder=tmp_path) + "secret.mp3"))
    with pytest.raises(AudioError, match="cannot be decoded"):
        decode(path)
    assert audio.length(path) == 0


@pytest.mark.parametrize("path", ["\0.wav", "a" * 5_000, "\ud800.wav", "/", "/dev/zero", "fifo"])
def test_paths_that_are_no_files_are_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with pytest.raises(AudioError, match=r"no such file|cannot be opened"):
        decode(path)


def seeds() -> dict[str, bytes]:
    sound = tone(22_050, 0.2)
    files = {name: written(sound, 22_050, name) for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64", "AU")}
    files |= {
        name: muxed([(0.5, tone(48_000, 0.2))], 48_000, name, "libopus") for name in ("matroska", "ogg", "mpegts")
    }
    files["mp4"] = muxed([(0.0, tone(44_100, 0.2))], 44_100, "mp4", "aac")
    files["claims"] = claiming(30_000_000, 2)
    files["joined"] = files["OGG"] + files["ogg"] + files["MP3"] + files["WAV"]
    return files | {name: text.format(file="list.m3u8").encode() for name, text in PLAYLISTS.items()}


SEEDS = seeds()


@settings(max_examples=150)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32), st.floats(0.05, 1.0), st.sampled_from(["", *PLAYLISTS]))
def test_no_content_raises_anything_but_audio_errors(kind, seed, share_kept, name):
    content, generator = bytearray(SEEDS[kind]), np.random.default_rng(seed)
    for place in generator.integers(0, min(len(content), generator.choice([64, 512, 2**20])), 4):
        width = generator.choice([1, 4])
        content[place : place + width] = generator.choice([bytes(width), b"\xff" * width, generator.bytes(width)])
    with contextlib.suppress(AudioError):
        assert len(decode(bytes(content[: int(len(content) * share_kept)]), name=name, max_seconds=60)) > 0
