"""A step over a stream, exported, gives the log-probabilities and texts of one pass; its check can fail."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jax_speechlm
from jax_speechlm import cli
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.interop.folders import ExportError, FailedCheck, read_record
from jax_speechlm.interop.runtimes import stream as streams
from jax_speechlm.interop.runtimes.stream import StreamProgram, check, windows
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.training.runs import LoadedRun
from tests.interop.docs_programs import run_docs
from tests.interop.tiny_runs import tiny_run
from tests.trained_tones import STREAMING, TOKENIZER, speak, trained_run

CHUNK_MS = 160
FAST = STREAMING.replace(
    frontend=FrontEnd(mel=LogMel(variant="nemo", num_mel_bins=40, stack=1, normalize=False)),
    model=FastConformerConfig(
        input_dim=40, dim=16, num_layers=1, num_heads=2, kernel_size=5, channels=4, causal=True, chunk_lengths=(2,),
        left_context=4,
    ),
)  # fmt: skip
LIBROSA = STREAMING.replace(
    frontend=FrontEnd(mel=LogMel(variant="librosa", num_mel_bins=16, stack=1, normalize="running")),
    model=STREAMING.model.replace(input_dim=16, chunk_lengths=(20,), left_context=20),
)
TDT = STREAMING.replace(objective=Transducer(durations=(0, 1, 3), network=TransducerConfig(dim=16)))


def program_of(experiment):
    """The step of a run with random parameters."""
    objective = experiment.objective.build(experiment.model, experiment.frontend, TOKENIZER)
    params = functional.init(objective.make, jax.random.key(0))
    return StreamProgram.of(LoadedRun(Path("runs/tiny/checkpoints/0"), 0, experiment, TOKENIZER, params), None)


def folded(program, samples):
    """The outputs of each chunk, of the function that is exported."""
    state, found, step = program.state, [], jax.jit(program.run)
    for window in windows(program, samples):
        outputs = jax.device_get(step(program.weights, *(window | state).values()))
        state = {name: outputs[f"next_{name}"] for name in state}
        found.append(outputs)
    return found


@pytest.mark.parametrize(
    ("experiment", "samples"), [(STREAMING, 30_011), (FAST, 12_799), (FAST, 12_800), (LIBROSA, 12_800)]
)
def test_the_log_probabilities_are_those_of_one_pass(experiment, samples):
    program = program_of(experiment)
    audio = speak("ab cab", 0)[0][:samples]
    audio = np.pad(audio, (0, samples - len(audio)), mode="wrap")
    found = folded(program, audio)
    streamed = np.concatenate([each["log_probs"][0, : int(each["num_frames"][0])] for each in found])

    objective = experiment.objective.build(experiment.model, experiment.frontend, TOKENIZER)
    module = functional.bind(functional.declare(objective.make).graphdef, program.recognizer.run.params)
    x, length = log_mel(jnp.asarray(audio)[None], jnp.array([samples]), experiment.frontend.mel)
    (logits,) = module(x, length, chunk=program.recognizer.encoder.chunk)
    expected = jax.nn.log_softmax(logits)[0, : experiment.model.num_frames(int(length[0]))]
    np.testing.assert_allclose(streamed, expected, atol=1e-4)


def test_a_transducers_step_passes_the_check():
    program = program_of(TDT)
    assert not any(name.startswith("head") for name in program.weights)
    assert check(program, jitted(program)).tokens > 20


def jitted(program, change=lambda outputs: None):
    call = jax.jit(program.run)

    def step(inputs):
        outputs = {name: np.array(each) for name, each in call(program.weights, *inputs.values()).items()}
        change(outputs)
        return outputs

    return step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs["log_probs"].__iadd__(2e-4), r"log-probabilities differ by 2\.0e-04"),
        (lambda outputs: outputs["log_probs"].__setitem__((0, 0, 0), np.nan), "log-probabilities differ by nan"),
        (lambda outputs: outputs["num_frames"].__iadd__(1), "chunk 0 has"),
        (lambda outputs: outputs["tokens"].__setitem__((0, 1), 3), "chunk 0 gives the tokens"),
        (lambda outputs: outputs["next_encoder_layers_attention_key"].__iadd__(1), "chunk|log-probabilities"),
    ],
)
def test_the_check_sees_what_differs(change, message):
    program = StreamProgram.of(LoadedRun.read(trained_run(STREAMING)), CHUNK_MS)
    with pytest.raises(FailedCheck, match=message):
        check(program, jitted(program, change))


def exported(tmp_path, target):
    """The folder of an export, and a recording with its text."""
    out, file = tmp_path / "out", tmp_path / "said.wav"
    command = ["export", str(trained_run(STREAMING)), "--to", target, "--stream", "--chunk-ms", str(CHUNK_MS)]
    assert cli.main([*command, "--out", str(out)]) == 0
    samples, _ = speak("ab cab bca", 1)
    soundfile.write(file, samples, 16_000)
    stream = jax_speechlm.load(trained_run(STREAMING)).stream(chunk_ms=CHUNK_MS)
    stream.accept(samples)
    return out, file, stream.finalize().text


@pytest.mark.parametrize(("target", "module"), [("stablehlo", "jax"), ("litert", "ai_edge_litert")])
def test_the_loop_of_the_docs_prints_the_text(target, module, tmp_path):
    pytest.importorskip(module)
    out, file, text = exported(tmp_path, target)
    record = read_record(out)
    assert record["check"]["tokens"] > 10
    assert {record["program"], record["state"]} <= {path.name for path in out.iterdir()}
    assert run_docs("window_samples", out, file) == text == "ab cab bca"


def test_what_cannot_stream_is_refused_with_the_remedy():
    with pytest.raises(ExportError, match="was trained by best_rq; only ctc or joint or transducer can stream"):
        StreamProgram.of(tiny_run("best_rq"), None)
    with pytest.raises(ExportError, match=r"was not trained to stream: model.chunk_lengths is empty"):
        StreamProgram.of(tiny_run("ctc"), None)
    with pytest.raises(ExportError, match=r"not trained on chunks of 320 ms: choose one of 80, 160 ms"):
        StreamProgram.of(LoadedRun.read(trained_run(STREAMING)), 320)
    with pytest.raises(ExportError, match="add --stream"):
        streams.check_options(False, 320)
