"""A voice of units: it speaks their numbers, and the continuations of a language model of the same units."""

import json

import numpy as np
import pytest
import soundfile

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.durations import DurationAligner
from jax_speechlm.inference.lm.units import UnitDecoder
from jax_speechlm.inference.synthesize import LONGEST_PART, Synthesizer
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.recipes.experiment import Experiment, UnitText
from tests.data_pipelines.unit_sets import make_units
from tests.evaluation.runs import write_run
from tests.objectives.text import MODEL, TOKENIZER
from tests.training import tiny

UNITS = 13


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A k-means, an untrained voice of its units, one of texts, and a language model of the units."""
    root = tmp_path_factory.mktemp("unit_voice")
    units = make_units(root / "units", UNITS)
    about = root / "units" / "units.json"
    about.write_text(about.read_text().replace('"noise"', '{"kind": "mfcc"}'))
    texts = tiny.experiment("tts")
    texts = texts.replace(objective=texts.objective.replace(classes=()))
    spoken = texts.replace(
        objective=texts.objective.replace(text="units"), data=texts.data.replace(units=str(root / "units"))
    )
    write_run(root / "voice", spoken, units.tokenizer, units.fingerprint)
    write_run(root / "reader", texts, CharTokenizer("abc "))
    data = UnitText(sets=("noise",), units=str(root / "units"), context=64, tokens_per_batch=64)
    lm = Experiment(data=data, objective=UnitLM(num_units=UNITS), model=MODEL)
    write_run(root / "lm", lm, TOKENIZER, units.fingerprint)
    return root


@pytest.fixture(scope="module")
def voice(root):
    return Synthesizer.load(root / "voice")


def test_numbers_are_spoken_as_units_and_not_as_words(voice):
    (speech,) = voice.synthesize("12 5 9")
    assert len(speech.durations) == 3 + 2
    assert len(speech.samples) == len(speech.mel) * voice.experiment.frontend.mel.hop > 0
    (repeated,) = voice.synthesize("12 12 5 9 9")
    np.testing.assert_array_equal(repeated.mel, speech.mel)
    np.testing.assert_array_equal(voice.speak_units(np.array([12, 5, 9], np.uint16)), speech.samples)
    (other,) = voice.synthesize("11 5 9")
    assert other.mel.shape != speech.mel.shape or np.abs(other.mel - speech.mel).max() > 1e-3


def test_long_sequences_are_cut_evenly_and_lines_are_apart(voice):
    ids = np.arange(2 * LONGEST_PART + 5) % UNITS
    parts = voice._sentences(" ".join(map(str, ids)) + "\n\n3 4\n", "en")
    assert [len(part) for part in parts] == [257, 256, 256, 2]
    assert np.concatenate(parts).tolist() == [*(ids + 1).tolist(), 4, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("3 hello 13", "no speech units: 'hello', '13'; write numbers from 0 to 12"),
        ("3,4", "no speech units: '3,4'"),
    ],
)
def test_what_is_no_unit_is_named(voice, text, message):
    with pytest.raises(DataError, match=message):
        voice.synthesize(["3 4", text])


def test_command_speaks_units(root, voice, tmp_path):
    assert cli.main(["synthesize", str(root / "voice"), "12 5 9", "--out", str(tmp_path / "a.wav")]) == 0
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 16_000
    np.testing.assert_allclose(samples, voice.synthesize("12 5 9")[0].samples, atol=1e-4)
    assert cli.main(["synthesize", str(root / "voice"), "hello", "--out", str(tmp_path / "b.wav")]) == USER_ERROR
    assert not (tmp_path / "b.wav").exists()


def test_a_language_model_speaks_by_a_voice_of_its_units(root, voice, tmp_path, capsys):
    command = ["generate", str(root / "lm"), "--max-tokens", "12", "--samples", "2", "--modality", "units"]
    assert cli.main([*command, "--out", str(tmp_path), "--voice", str(root / "voice")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["wav"] for line in lines] == [str(tmp_path / f"{number}.wav") for number in range(2)]
    for line in lines:
        units = [unit for part in line["parts"] for unit in part["units"]]
        written, _ = soundfile.read(line["wav"])
        np.testing.assert_allclose(written, voice.speak_units(np.array(units)), atol=1e-4)


def test_a_voice_of_something_else_is_refused(root, tmp_path, capsys):
    command = ["generate", str(root / "lm"), "--modality", "units", "--out", str(tmp_path / "out")]
    assert cli.main(command) == USER_ERROR
    assert "name its run with --voice" in capsys.readouterr().err
    assert cli.main([*command, "--voice", str(root / "reader")]) == USER_ERROR
    assert "was trained on texts, and the units of" in capsys.readouterr().err
    assert cli.main([*command[:4], "--voice", str(root / "voice")]) == USER_ERROR
    assert "name a folder for them with --out" in capsys.readouterr().err
    other = make_units(tmp_path / "other", UNITS, seed=1)
    with pytest.raises(CheckpointError, match=f"and the units of .*other are {other.fingerprint}: name a voice"):
        UnitDecoder.load(other.path, root / "voice")
    assert not (tmp_path / "out").exists()


def test_a_voice_of_units_aligns_no_transcripts(root):
    with pytest.raises(CheckpointError, match="was trained on speech units, so it aligns no transcripts"):
        DurationAligner.load(root / "voice")
