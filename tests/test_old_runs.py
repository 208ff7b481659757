"""Runs that earlier versions wrote still open: settings have had other names since."""

import tarfile
from pathlib import Path

import pytest

import jax_speechlm
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from tests.trained_tones import EXPERIMENT, speak

ARCHIVE = Path(__file__).parent / "golden" / "run_of_version_1.tar.gz"
"""The run of `trained_tones`, written before `start`, `cadence` and `frontend.mel.flavour` were renamed."""


@pytest.fixture(scope="module")
def old_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def test_a_checkpoint_with_settings_of_old_transcribes_as_it_did(old_run):
    samples, words = speak("abc cab ba")
    (transcript,) = jax_speechlm.load(old_run).transcribe([samples])
    assert transcript.text == " ".join(word for word, *_ in words)


def test_a_config_file_with_settings_of_old_is_read(old_run):
    text = (old_run / "config.json").read_text()
    assert all(f'"{name}"' in text for name in ("start", "cadence", "flavour"))
    bucketed = EXPERIMENT.data.replace(packed=False)  # as all batches of speech were
    assert Experiment.read(old_run / "config.json") == EXPERIMENT.replace(data=bucketed)


def test_an_old_name_sets_what_the_new_one_does():
    one = EXPERIMENT.model_dump(mode="json") | {"start": {"checkpoint": "runs/a"}}
    del one["init_from"]
    assert Experiment.model_validate(one).init_from == (InitFrom(checkpoint="runs/a"),)
    with pytest.raises(ValueError, match="two names of one setting"):
        Experiment.model_validate(one | {"init_from": ()})
