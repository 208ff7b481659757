"""Every format lists the same clips as any other, and what is wrong in its files is an error that names it."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.audio.clips import Clip
from data_pipelines.audio.decode import decode_flac
from data_pipelines.prepare.convert import Format, Sound, by_recording, convert_clips
from data_pipelines.sources.speech_formats import guess, speech_source
from data_pipelines.text.normalize import split_key, split_of
from tests.data_pipelines.sources import speech_writers
from tests.data_pipelines.sources.speech_writers import Spoken

# Of a format that has several ways to write it.
NAMES = {
    "manifest of stretches": "manifest",
    "lhotse recordings": "lhotse",
    "lhotse cuts": "lhotse",
    "lhotse shar": "lhotse",
    "kaldi segments": "kaldi",
    "espnet archive": "kaldi",
}


@st.composite
def spoken_clips(draw):
    texts = st.text(st.sampled_from("abcxyzé'中文字"), min_size=1, max_size=8)
    clips = []
    for number in range(draw(st.integers(2, 5))):
        speaker = draw(st.sampled_from(("1234", "2345")))
        split = draw(st.sampled_from(("train", "dev", "test"))) if number > 1 else ("train", "dev")[number]
        gender = {"1234": "female", "2345": "male"}[speaker]
        length = draw(st.integers(8, 20))
        clips.append(Spoken(f"{speaker}_77_{number:06d}", speaker, draw(texts), gender, split, number, length))
    return clips


def prepared(path, known):
    """Returns the fields and samples of the clips of a source by id, as `prepare` converts them."""
    items = list(speech_source(path, "my", known, "none").unique_items())
    assert all(isinstance(item, Clip) for item in items), items
    result = {}
    for group in by_recording(items):
        for index, converted in convert_clips(group, Format(9.0)):
            assert isinstance(converted, Sound), converted
            clip = group[index]
            fields = {name: getattr(clip, name) for name in ("text", "speaker", "gender", "language", "split")}
            result[clip.id] = fields, decode_flac(converted.flac)
    return result


@pytest.mark.parametrize("name", speech_writers.FORMATS)
@settings(max_examples=3)
@given(clips=spoken_clips())
def test_the_same_clips_in_every_format_give_the_same_set(name, clips, tmp_path_factory):
    written = speech_writers.FORMATS[name]
    path = written.write(tmp_path_factory.mktemp("my"), clips)
    known = guess(path)
    assert known.name == NAMES.get(name, name)
    result = prepared(path, known)
    by_id = {re.sub(r"^(train|dev|test)/", "", clip_id): row for clip_id, row in result.items()}
    assert sorted(by_id) == sorted(clip.id for clip in clips)
    for clip in clips:
        fields, samples = by_id[clip.id]
        expected = {field: getattr(clip, field) if field in written.fields else "" for field in ("speaker", "gender")}
        expected["split"] = clip.split if "split" in written.fields else split_of(split_key(clip.text) or clip.id)
        assert fields == expected | {"text": clip.text, "language": written.language}
        np.testing.assert_array_equal(samples, clip.samples)
