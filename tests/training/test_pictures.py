"""Pictures of arrays as PNG, read back by soundless means: zlib and struct, and in TensorBoard's files."""

import struct
import zlib

import numpy as np
import pytest

from jax_speechlm.training import loop
from jax_speechlm.training.pictures import to_png, trimmed
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


@pytest.mark.slow
def test_every_validation_shows_the_pictures_of_the_objective(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment = tiny.experiment("tts")
    loop.train(experiment, tmp_path, tiny.source(experiment))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"dev/mel", "dev/alignment"}
    for name in events.Tags()["images"]:
        assert [event.step for event in events.Images(name)] == [4, 8]
        image = decoded(events.Images(name)[-1].encoded_image_string)
        assert image.std() > 1
        assert image.shape[:2] == (events.Images(name)[-1].height, events.Images(name)[-1].width)
    mel, alignment = (events.Images(f"dev/{name}")[-1] for name in ("mel", "alignment"))
    assert mel.height == 2 * 16 + 1
    assert alignment.height == 3 + 2  # tokens and boundaries
    assert mel.width == alignment.width
