"""Commands are predicted the same whatever else is asked about; silence is none."""

import json

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.audio.decode import AudioError
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.recipes.experiment import Experiment, Speech
from tests.data_pipelines.prepared import noise
from tests.evaluation.runs import write_run
from tests.objectives.test_intent import CONFIG

MEL = LogMel(num_mel_bins=8, stack=2)
SOUNDS = [noise(seed, 4_000 + 5_000 * seed) for seed in range(4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = ConformerConfig(input_dim=MEL.input_dim, dim=8, num_layers=1, num_heads=2, kernel_size=3)
    experiment = Experiment(data=Speech(sets=("x",)), objective=CONFIG, frontend=FrontEnd(mel=MEL), model=model)
    return write_run(tmp_path_factory.mktemp("commands") / "run", experiment, None)


def test_a_command_does_not_depend_on_the_others(run):
    model = jax_speechlm.load(run)
    assert model.abilities == ("understand", "embed")
    together = model.understand([*SOUNDS, np.zeros(16_000, np.int16), noise(0, 20)])
    assert together[-2:] == [(None, {}, 0.0, "")] * 2  # silence, and not one frame
    for sound, command in zip(SOUNDS, together, strict=False):
        (alone,) = model.understand(sound)
        assert alone[:2] == command[:2]
        assert alone.confidence == pytest.approx(command.confidence, rel=1e-4)
        assert 0 < command.confidence < 1
        assert command.above(1.0)[:2] == (None, {})
        assert command.above(0.0) == command
    with pytest.raises(AudioError, match="longer than a command, 30 s"):
        model.understand(noise(1, 31 * 16_000))


def test_the_command_line_prints_json(run, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", SOUNDS[2], 16_000)
    assert cli.main(["intent", str(run), str(tmp_path / "a.wav"), str(tmp_path / "none.wav")]) == USER_ERROR
    out, err = capsys.readouterr()
    (line,) = map(json.loads, out.splitlines())
    assert set(line) == {"file", "intent", "slots", "confidence"}
    assert "none.wav" in err
