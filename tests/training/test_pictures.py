"""Pictures of arrays as PNG, read back by zlib and struct; pictures and audio in TensorBoard's files."""

import io
import struct
import zlib

import numpy as np
import pytest
import soundfile

from data_pipelines.audio.wav import to_int16
from jax_speechlm.training import loop
from jax_speechlm.training.pictures import to_png, trimmed
from jax_speechlm.training.reporting import Reporter
from tests.training import tiny


def decoded(png: bytes) -> np.ndarray:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + length
    width, height, depth, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, kind) == (8, 2)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_more_is_brighter_and_nothing_is_darkest():
    image = decoded(to_png(np.array([[-3.0, 0, 5], [np.nan, 1, 5]]))).astype(int)
    assert image.shape == (2, 3, 3)
    assert tuple(image[0, 0]) == tuple(image[1, 0]) == (68, 1, 84)
    assert tuple(image[0, 2]) == (253, 231, 37)
    brightness = image.sum(-1)
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 1] < brightness[0, 2]


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.full((1, 1), np.nan), np.array([[1.0, np.inf]])])
def test_values_without_a_range_have_a_picture(values):
    assert decoded(to_png(values)).shape == (*values.shape, 3)


def test_edges_of_nothing_are_cut_off():
    values = np.full((4, 5), np.nan)
    values[1, 1:4] = 1, np.nan, 2
    np.testing.assert_array_equal(trimmed(values), [[1, np.nan, 2]])
    assert trimmed(values[2:]).shape == (1, 1)
    np.testing.assert_array_equal(trimmed(values[1]), [1, np.nan, 2])
    assert trimmed(values[0]).shape == (1,)


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # after `reporting`, see there

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    events.Reload()
    return events


def heard(event) -> np.ndarray:
    """Returns the samples of an event, by another reader of WAV than the writer."""
    samples, rate = soundfile.read(io.BytesIO(event.encoded_audio_string), dtype="int16")
    assert (rate, len(samples)) == (event.sample_rate, event.length_frames)
    assert event.content_type == "audio/wav"
    return samples


def test_pictures_and_waveforms_are_read_back_from_the_event_file(tmp_path):
    wave = np.sin(np.arange(400, dtype=np.float32) / 9)
    wave[7] = np.nan
    padded = np.concatenate([0.5 * wave, np.full(100, np.nan, np.float32)])
    with Reporter(tmp_path, "run", 0, 9) as reporter:
        shown = {"mel": np.eye(3), "clip_1_natural": padded, "clip_2_natural": np.full(9, np.nan, np.float32)}
        reporter.show(5, 22_050, shown)
    events = read_events(tmp_path)
    assert events.Tags()["images"] == ["dev/mel"]
    assert events.Tags()["audio"] == ["dev/clip_1_natural", "dev/clip_2_natural"]
    (event,) = events.Audio("dev/clip_1_natural")
    assert (event.step, event.sample_rate) == (5, 22_050)
    np.testing.assert_array_equal(heard(event), to_int16(np.nan_to_num(0.5 * wave)))
    assert heard(events.Audio("dev/clip_2_natural")[0]).tolist() == [0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tts", "vocoder", "codec"])
def test_every_validation_shows_the_examples_of_the_objective(tmp_path, name):
    experiment = tiny.experiment(name)
    source = tiny.source(experiment)
    loop.train(experiment, tmp_path, source)
    events = read_events(tmp_path)
    kind = "voice" if name == "tts" else "copy"
    assert set(events.Tags()["audio"]) == {f"dev/clip_{row}_{each}" for row in (1, 2, 3) for each in ("natural", kind)}
    batch = next(iter(source.dev_batches()))
    for row in range(3):
        for each in ("natural", kind):
            found = events.Audio(f"dev/clip_{row + 1}_{each}")
            assert [event.step for event in found] == [4, 8]
            assert found[0].sample_rate == 16_000
            samples = heard(found[-1])
            hop = experiment.frontend.mel.hop
            length = min(batch["audio_length"][row], batch["audio"].shape[1] // hop * hop)
            assert len(samples) == length
            if each == "natural":
                np.testing.assert_array_equal(samples, batch["audio"][row, :length])
            else:
                assert samples.std() > 1
    if name != "tts":
        assert events.Tags()["images"] == []
        return
    assert set(events.Tags()["images"]) == {"dev/mel", "dev/alignment"}
    for image in events.Tags()["images"]:
        assert [event.step for event in events.Images(image)] == [4, 8]
        last = events.Images(image)[-1]
        picture = decoded(last.encoded_image_string)
        assert picture.std() > 1
        assert picture.shape[:2] == (last.height, last.width)
    mel, alignment = (events.Images(f"dev/{name}")[-1] for name in ("mel", "alignment"))
    assert mel.height == 2 * 16 + 1
    assert alignment.height == 3 + 2  # tokens and boundaries
    assert mel.width == alignment.width
