"""A hybrid of an attention decoder and CTC that has learnt tones by CTC transcribes them by joint search."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.lm.kneser_ney import estimate, write_arpa
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.training.runs import LoadedRun
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import write_run
from tests.trained_tones import EXPERIMENT, MODEL, TOKENIZER, speak, trained_run

DECODER = AttentionDecoderConfig(dim=16, num_layers=1, num_heads=2, ffn_dim=24, max_tokens=32)
HYBRID = EXPERIMENT.replace(objective=AED(ctc_weight=0.3), model=EncoderDecoderConfig(encoder=MODEL, decoder=DECODER))
BY_CTC = Decoding(decoder="beam", beam_size=4, ctc_weight=0.95)
TEXTS = ["ab cab", "bc", "acb bca"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with the encoder and CTC head of `trained_run`, and a decoder that has learnt nothing."""
    objective = HYBRID.objective.build(HYBRID.model, HYBRID.frontend, TOKENIZER)
    params = functional.init(objective.make, jax.random.key(0)) | dict(LoadedRun.read(trained_run()).params)
    return write_run(tmp_path_factory.mktemp("hybrid") / "run", HYBRID, TOKENIZER, params=params)


@functools.cache
def spoken() -> list[np.ndarray]:
    return [speak(text, seed)[0] for seed, text in enumerate(TEXTS)]


def test_the_joint_search_reads_what_either_knows(run):
    model = open_transcriber(run, BY_CTC)
    assert model.decoding_description.startswith("beam 4, 0.95 of it CTC")
    assert [each.text for each in model.transcribe(spoken())] == TEXTS
    for clip, text in zip(spoken(), TEXTS, strict=True):
        (alone,) = model.transcribe([clip])
        assert alone.text == text
        assert alone.segments[0].alternatives[0] == text
        assert [word.word for word in alone.words] == text.split()
    assert open_transcriber(run, Decoding(decoder="beam")).ctc_weight == 0.3  # of its training
    assert [each.text for each in Recognizer.load(run).transcribe(spoken())] == TEXTS  # the head alone, as for align


def test_language_models_add_to_the_search_and_are_tuned(run, tmp_path):
    write_prepared(
        tmp_path / "data" / "tones", {name: list(zip(spoken(), TEXTS, strict=True)) for name in ("dev", "test")}
    )
    write_arpa(estimate((list(text.replace(" ", "\u2581")) for text in TEXTS), 2), tmp_path / "lm.arpa")
    options = {"data_dir": tmp_path / "data", "out": tmp_path / "eval"}
    report = evaluate_run(run, ("tones",), decoding=BY_CTC.replace(lm=tmp_path / "lm.arpa"), **options)
    assert "weights tuned on dev of tones" in report.decoder
    assert report.wer.rate < 0.4
    boosted = tmp_path / "names.txt"
    boosted.write_text("cb\t40\n")
    (best,) = open_transcriber(run, BY_CTC.replace(boost=boosted)).transcribe(spoken()[1:2])
    assert "cb" in best.text.split()


def test_settings_that_do_not_fit_are_named(run):
    with pytest.raises(ValueError, match="greedy decoding of a decoder has no use for its CTC head"):
        Decoding(ctc_weight=0.5)
    with pytest.raises(ValueError, match="ctc_weight is for runs that were trained by aed"):
        open_transcriber(trained_run(), BY_CTC)
    with pytest.raises(ValueError, match="timestamps is for runs that were trained by aed"):
        open_transcriber(trained_run(), Decoding(timestamps=True))
    with pytest.raises(CheckpointError):
        open_transcriber(run.parent / "none")
