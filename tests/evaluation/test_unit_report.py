"""Units against the characters of a forced alignment whose every frame is known."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.evaluation.units import _characters
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.training.runs import LoadedRun
from tests.data_pipelines.prepared import noise, write_prepared
from tests.training import tiny

TEXTS = ["ab", "ba", "", "a" * 40]  # the third has nothing to align, the fourth more than its frames can hold
FRAMES = 12  # of the recognizer: 320 samples each


@pytest.fixture
def recognizer():
    """Hears, in every utterance, two frames of blank, four of its first letter, two of blank, four of its last."""
    tokenizer = CharTokenizer("ab")

    def posteriors(_, batch):
        log_probs = np.full((len(batch["example_id"]), FRAMES, 3), -9.0, np.float32)
        log_probs[:, [0, 1, 6, 7], 0] = 0
        for place, row in enumerate(batch["example_id"]):
            for letter, frames in zip(TEXTS[row][:2], (slice(2, 6), slice(8, 12)), strict=False):
                log_probs[place, frames, tokenizer.encode(letter)[0]] = 0
        return log_probs, np.full(len(log_probs), FRAMES)

    experiment = tiny.experiment("ctc")
    recognizer = Recognizer((LoadedRun(Path("run"), 1, experiment, tokenizer, {}),))
    recognizer.__dict__["_posteriors"] = posteriors
    return recognizer


@pytest.mark.parametrize("frame_samples", [320, 160, 640])
def test_a_frame_counts_for_the_character_that_its_middle_lies_in(recognizer, frame_samples, tmp_path):
    clips = [(noise(row, FRAMES * 320 + 240), text) for row, text in enumerate(TEXTS)]
    write_prepared(tmp_path / "letters", {"test": clips})
    speech = EvaluationSpeech(recognizer, ("letters",), "test", tmp_path, 60.0)
    num_frames = FRAMES * 320 // frame_samples
    codes = [np.arange(num_frames) for _ in TEXTS]  # a unit a place, so that each count shows where it is from
    counts, unaligned = _characters(recognizer, speech, codes, num_frames, frame_samples)
    middle = (np.arange(num_frames) + 0.5) * frame_samples / 320
    first, last = (middle >= 2) & (middle < 6), (middle >= 8) & (middle < 12)
    np.testing.assert_array_equal(counts[:, 0], 0)  # the blank
    for letter in (1, 2):  # one utterance begins with it, the other ends with it
        np.testing.assert_array_equal(counts[:, letter], first.astype(int) + last)
    assert unaligned == 2
