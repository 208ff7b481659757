"""Options that no command can follow are one line that names them, before anything is read."""

import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.asr.speech_lm import answer_files
from jax_speechlm.inference.lm.causal import generate_texts
from jax_speechlm.inference.lm.units import generate_units

IMPOSSIBLE = {
    "onnx 0": ("export --to onnx", "--seconds=0", "--seconds takes lengths above 0, got 0"),
    "onnx nan": ("export --to onnx", "--seconds=nan", "--seconds takes lengths above 0, got nan"),
    "litert -1": ("export --to litert", "--seconds=-1", "--seconds takes lengths above 0, got -1"),
    "litert inf": ("export --to litert", "--seconds=inf", "--seconds takes lengths above 0, got inf"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_settings_that_are_impossible_are_named(name, tmp_path, capsys):
    command, option, message = IMPOSSIBLE[name]
    assert cli.main([*command.split(), str(tmp_path / "run"), option, f"--out={tmp_path / 'out'}"]) == USER_ERROR
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("generate", [generate_texts, generate_units, answer_files])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "--samples must be at least 1, got 0"),
        ({"max_tokens": -2}, "--max-tokens must be at least 1, got -2"),
        ({"beam_size": -1}, "--beam-size must be 0"),
        ({"beam_size": 2, "length_penalty": float("inf")}, "length_penalty"),
    ],
)
def test_settings_of_generation_that_are_impossible_are_named(generate, options, message, tmp_path):
    """Though the run is not there."""
    if generate is answer_files and "max_tokens" in options:
        return
    arguments = {"files": ()} if generate is answer_files else {"prompts": ("a",)}
    with pytest.raises(ValueError, match=message):
        generate(tmp_path, **arguments, **options)
