"""Whisper in the hands of plain transformers, in and out, on a tiny random model."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.whisper_mel import WhisperMel, whisper_mel
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import write_whisper

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("multilingual", [False, True])
def test_a_folder_passes_its_whole_check_in_and_out(tmp_path, multilingual):
    write_whisper(tmp_path / "theirs", multilingual=multilingual)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    verdict = write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again")
    assert verdict.is_full
    assert {"front end", "ids", "logits", "greedy text"} < {check.name for check in verdict.checks}


@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_those_of_the_extractor(bins):
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, scale, length).astype(np.int16) for scale, length in ((3000, 50_000), (30, 480_000))]
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    for clip in clips:
        expected = extractor(clip / np.float32(32768), sampling_rate=16_000, return_tensors="np")["input_features"][0]
        found, _ = whisper_mel(jnp.asarray(clip)[None], jnp.array([len(clip)]), WhisperMel(num_mel_bins=bins))
        np.testing.assert_allclose(found[0], expected.T, atol=1e-4)
