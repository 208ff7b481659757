"""Adapters of models that decode with their own text: beside the base they compute what merged kernels compute."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.inference.asr.answer import Fallback
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.interop.hf.peft import WEIGHTS, write_adapter
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.nn.lora import GROUP, LoRA, merge
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.training.runs import LoadedRun
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import write_run
from tests.interop.foreign_folders import write_whisper
from tests.interop.test_adapters import random_updates
from tests.trained_tones import EXPERIMENT, TOKENIZER

SETTINGS = LoRA(rank=2, alpha=8.0, targets=())
CLIPS = [
    np.random.default_rng(seed).normal(0, 2000, length).astype(np.int16) for seed, length in enumerate((9000, 16_000))
]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder / "hf", multilingual=False)
    import_run(folder / "hf", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def transducer(tmp_path_factory):
    objective = Transducer(network=TransducerConfig(dim=24, dropout=0.0), ctc_weight=0.0)
    return write_run(tmp_path_factory.mktemp("rnnt") / "run", EXPERIMENT.replace(objective=objective), TOKENIZER)


def adapter_of(path, folder, scale=1.0):
    """Writes an adapter of a run; returns its folder and the run with its updates merged."""
    run = LoadedRun.read(path)
    updates = jax.tree.map(lambda leaf: scale * leaf, random_updates(run, SETTINGS))
    folder.mkdir()
    write_adapter(folder, updates, SETTINGS, run)
    params, _ = merge(run.params | {GROUP: updates}, SETTINGS)
    return folder, dataclasses.replace(run, params=params)


def drawn(model):
    """A recognizer whose texts are all drawn, as those of a random model have no words else."""
    return dataclasses.replace(model, fallback=Fallback(temperatures=(0.0, 0.7), log_prob=0.0))


def test_a_whisper_reads_an_adapter_by_the_names_of_its_class(whisper, tmp_path):
    adapter, merged = adapter_of(whisper, tmp_path / "adapter")
    names = load_file(adapter / WEIGHTS)
    assert "base_model.model.model.decoder.layers.1.encoder_attn.v_proj.lora_A.weight" in names
    base = drawn(open_transcriber(whisper))
    expected = [each.text for each in dataclasses.replace(base, run=merged).transcribe(CLIPS)]
    assert any(expected)
    assert [each.text for each in base.transcribe(CLIPS)] != expected
    shared, loaded = base.with_adapter(adapter), drawn(open_transcriber(whisper, adapter=adapter))
    for model in (shared, loaded):
        assert [each.text for each in model.transcribe(CLIPS)] == expected
        assert str(adapter) in model.decoding_description
    assert shared._programs is base._programs
    assert shared.params["decoder"]["embedding"] is base.params["decoder"]["embedding"]
    with pytest.raises(ValueError, match="already"):
        shared.with_adapter(adapter)


def test_a_beam_search_has_the_adapter_and_the_prompt_too(whisper, tmp_path):
    adapter, merged = adapter_of(whisper, tmp_path / "adapter")
    decoding = Decoding(decoder="beam", beam_size=2)
    batch = {"audio": CLIPS[1][None], "audio_length": np.array([16_000], np.int32)}
    base = open_transcriber(whisper, decoding)
    plain = dataclasses.replace(open_transcriber(whisper), run=merged)
    expected = plain._programs.network(merged.params, 0.0, ())
    frames, lengths = jax.device_get(plain._frames(batch))
    _, extensions = expected.start(frames, lengths, 2)
    _, found = base.with_adapter(adapter)._network.start(frames, lengths, 2)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), extensions, found)
    for prompt in ("the cat", "sat"):
        with_prompt = open_transcriber(whisper, decoding.replace(prompt=prompt))
        assert base.with_prompt(prompt).answers(batch)[0].ids == with_prompt.answers(batch)[0].ids
    assert base.with_prompt(" ") is base


def test_a_transducer_takes_an_adapter(transducer, tmp_path):
    adapter, merged = adapter_of(transducer, tmp_path / "adapter", scale=0.5)
    base = open_transcriber(transducer)
    expected = dataclasses.replace(base, run=merged).encode_audio(CLIPS)
    for model in (base.with_adapter(adapter), open_transcriber(transducer, adapter=adapter)):
        for one, other, plain in zip(model.encode_audio(CLIPS), expected, base.encode_audio(CLIPS), strict=True):
            assert one.tokens == other.tokens
            np.testing.assert_allclose(one.acoustic, other.acoustic, rtol=1e-4)
            assert abs(one.acoustic - plain.acoustic) > 1e-2
    beam = open_transcriber(transducer, Decoding(decoder="beam", beam_size=2)).with_adapter(adapter)
    direct = open_transcriber(transducer, Decoding(decoder="beam", beam_size=2), adapter=adapter)
    assert [each.text for each in beam.transcribe(CLIPS)] == [each.text for each in direct.transcribe(CLIPS)]


def test_an_evaluation_has_the_adapter_in_its_report(whisper, tmp_path):
    adapter, _ = adapter_of(whisper, tmp_path / "adapter")
    write_prepared(tmp_path / "data" / "noise", {"test": [(clip, "the cat") for clip in CLIPS]})
    options = {"data_dir": tmp_path / "data", "decoding": Decoding(decoder="greedy"), "out": tmp_path / "out"}
    report = evaluate_run(whisper, ("noise",), adapter=adapter, limit=1, **options)
    assert f"adapter {adapter}" in report.decoder
    assert len(report.utterances) == 1
