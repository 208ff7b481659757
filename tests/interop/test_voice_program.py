"""Runs that are refused as a program from token ids to samples."""

import dataclasses

import pytest

from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.vocode import Vocoder
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.runtimes.voice import VoiceProgram
from jax_speechlm.models.tts.fastspeech2 import TextLM
from jax_speechlm.models.tts.tacotron import TacotronConfig
from jax_speechlm.objectives.tts.attention import AttentionTTS
from tests.interop.tiny_runs import VOICE, tiny_run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": AttentionTTS(), "model": TacotronConfig()}, "is a tacotron, and only a fastspeech2 is exported"),
        ({"model": VOICE.replace(text_lm=TextLM())}, "reads tokens alone, and this one a language model too"),
    ],
)
def test_a_voice_without_a_program_is_refused_in_one_line(changes, message):
    run = tiny_run("tts")
    run = dataclasses.replace(run, experiment=run.experiment.replace(**changes), params={})
    mel = run.experiment.frontend.mel
    with pytest.raises(ExportError, match=message) as refused:
        VoiceProgram.of(Synthesizer(run, Vocoder.load("griffin-lim", mel)))
    assert str(run.checkpoint) in str(refused.value)
    assert "\n" not in str(refused.value)
