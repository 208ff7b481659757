"""Which transcripts self-training keeps."""

import pytest

from jax_speechlm.apps.self_training import Filter
from jax_speechlm.inference.asr.base import Transcription

HEARD = [
    Transcription("a", -0.5),
    Transcription("", 0.0),
    Transcription("b", -0.1),
    Transcription(" ", -0.01),
    Transcription("c", -2.0),
    Transcription("d", -0.5),
]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"share": 1.0}, "abcd"),
        ({"share": 0.5}, "ab"),  # of two that are equally sure the first
        ({"share": 0.51}, "abd"),
        ({"share": 1.0, "min_confidence": 0.6}, "abd"),
        ({"share": 0.25, "min_confidence": 0.6}, "b"),
        ({"share": 1.0, "min_confidence": 0.95}, ""),
    ],
)
def test_the_surest_are_kept_and_none_that_is_empty(settings, kept):
    chosen = Filter(**settings).keep(HEARD)
    assert "".join(each.text for each, keep in zip(HEARD, chosen, strict=True) if keep) == kept
