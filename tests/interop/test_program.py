"""What every exported recognizer computes is what the recognizer computes, and the check that says so can fail."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.tokenizers.base import CharTokenizer, train_tokenizer
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.interop.folders import ExportError, FailedCheck, read_record
from jax_speechlm.interop.runtimes.program import Program, Target, check, export, id_texts
from tests.interop.tiny_runs import save, tiny_run

TEXTS = ["the cat sat on the mat", "a dog ate the hat", "that cat had a bad day at the zoo"] * 3
MELS = {"kaldi": {}, "librosa": {"variant": "librosa", "stack": 1}, "wide": {"stack": 4}, "nemo": {"variant": "nemo"}}


@pytest.fixture(scope="module")
def program():
    return Program.of(tiny_run("ctc"))


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(2)
    length = np.array([12_345, 0, 559, 20_001], np.int32)
    audio = np.stack([np.where(np.arange(20_001) < n, 3000 * rng.normal(size=20_001), 77) for n in length])
    return audio.astype(np.int16), length


def recognize(program, audio, length):
    return jax.device_get(jax.jit(program.run)(program.weights, audio, length))


@pytest.mark.parametrize(("name", "mel"), [("ctc", "librosa"), ("joint", "wide")])
def test_it_computes_what_the_recognizer_does(name, mel, clips, tmp_path):
    audio, length = clips
    run = tiny_run(name, **MELS[mel])
    program, recognizer = Program.of(run), Recognizer.load(save(tmp_path, run))
    given = recognize(program, audio, length)
    batch = {"audio": audio, "audio_length": length, "example_id": np.arange(4)}
    texts = recognizer.recognize(iter([batch]))
    assert len(texts[0]) > 3
    for row, log_probs in recognizer.posteriors(iter([batch])).items():
        assert given["num_frames"][row] == len(log_probs)
        np.testing.assert_allclose(given["log_probs"][row, : len(log_probs)], log_probs, atol=1e-5)
        assert program.text(given["tokens"][row]) == texts[row]


@pytest.mark.parametrize("name", ["ctc", "joint"])
def test_weights_that_recognition_does_not_need_stay_behind(name):
    run = tiny_run(name)
    assert {weight.partition(".")[0] for weight in Program.of(run).weights} == {"encoder", "head"}
    assert (len(run.params) > 2) == (name == "joint")


def test_a_bfloat16_run_is_exported_in_float32(program, clips):
    run = tiny_run("ctc")
    run.experiment.__dict__["model"] = run.experiment.model.replace(dtype="bfloat16")
    given, expected = (recognize(each, *clips) for each in (Program.of(run), program))
    np.testing.assert_array_equal(given["log_probs"], expected["log_probs"])


@pytest.mark.parametrize("mel", MELS)
@pytest.mark.parametrize("which", [0, 1])
def test_the_limits_of_a_row_hold_to_the_sample(mel, which):
    """One frame at the least; and no more frames than attention takes whole, but nearly as many."""
    program = Program.of(tiny_run("ctc", **MELS[mel]))
    audio = jax.ShapeDtypeStruct((1, program.samples[which]), np.int16)
    shapes = jax.eval_shape(program.run, program.weights, audio, jax.ShapeDtypeStruct((1,), np.int32))
    frames = shapes["tokens"].shape[1]
    assert 1 <= frames <= 3 if which == 0 else 2040 < frames <= 2048


@pytest.mark.parametrize("seconds", [1e-4, 1e7])
def test_settings_of_lengths_beyond_the_model_are_refused(program, seconds, tmp_path, monkeypatch):
    monkeypatch.setattr("jax_speechlm.interop.runtimes.program.LoadedRun.read", lambda run: None)
    monkeypatch.setattr("jax_speechlm.interop.runtimes.program.Program.of", lambda run: program)
    with pytest.raises(ExportError, match=r"--seconds must lie within 0\.\d+ to \d+ for this model"):
        export(tmp_path / "run", tmp_path / "out", target(program, None), [5.0, seconds])


def test_only_recognizers_are_exported():
    with pytest.raises(ExportError, match="was trained by best_rq"):
        Program.of(tiny_run("best_rq"))


def damaged(program, change):
    call = jax.jit(program.run)

    def run(audio, audio_length):
        outputs = {name: np.array(value) for name, value in call(program.weights, audio, audio_length).items()}
        change(outputs)
        return outputs

    return run


def target(program, change):
    """Writes nothing, and reads the program itself with changed outputs."""
    return Target("test", lambda *arguments: {}, lambda folder: damaged(program, change), ["numpy"])


def test_the_check_passes_the_original_and_counts(program):
    agreement = check(program, damaged(program, lambda outputs: None))
    assert agreement.rows == 6
    assert agreement.tokens > 20
    assert agreement.difference < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs["log_probs"].__iadd__(2e-4), "log-probabilities differ by 2.0e-04"),
        (lambda outputs: outputs["log_probs"].__setitem__((0, 0, 0), np.nan), "log-probabilities differ by nan"),
        (lambda outputs: outputs["num_frames"].__iadd__(1), "frames instead of"),
        (lambda outputs: outputs["tokens"].__setitem__((0, 1), 3), "tokens"),
        (lambda outputs: outputs.update(text=np.array([b"?"] * len(outputs["tokens"]))), "'\\?' instead of"),
    ],
)
def test_what_differs_does_not_appear(program, change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Program, "of", lambda run: program)
    run, out = save(tmp_path / "run", tiny_run("ctc")), tmp_path / "out"
    with pytest.raises(FailedCheck, match=message):
        export(run, out, target(program, change), [0.125])
    assert not out.exists()
    export(run, out, target(program, lambda outputs: None), [0.125])
    assert "5 utterances, 15 frames: log-probabilities differ by at most " in capsys.readouterr().out
    assert read_record(out)["read_by"] == {"numpy": np.__version__}


@given(ids=st.lists(st.integers(0, 29), max_size=12))
@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc d\u00e9f"), train_tokenizer(TEXTS, "unigram", 30)])
def test_pieces_spell_what_the_tokenizer_spells(tokenizer, ids):
    ids = [number for number in ids if number < tokenizer.vocab_size]
    text = "".join(id_texts(tokenizer)[number] for number in ids)
    assert text.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")


@pytest.mark.parametrize("texts", [["caf\u00e9 au lait"] * 9, ["two\nlines of it"] * 9])
def test_other_ways_of_spelling_are_refused(texts):
    """Bytes that only together make a character, and lines that each lose the space that they begin with."""
    is_line = "\n" in texts[0]
    tokenizer = train_tokenizer(texts, "bpe", 30 if is_line else 300, byte_fallback=not is_line)
    with pytest.raises(ExportError, match="one after the other"):
        id_texts(tokenizer)
