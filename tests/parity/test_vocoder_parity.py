"""HiFi-GAN against transformers, on random weights: both classes, both ways, and what cannot be imported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import hifigan
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.vocoders.hifigan import HifiGan
from jax_speechlm.nn import functional
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import write_json

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SETTINGS = {
    "model_in_dim": 12,
    "upsample_initial_channel": 16,
    "upsample_rates": [5, 4, 2],
    "upsample_kernel_sizes": [11, 8, 2],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 2]],
    "sampling_rate": 22_050,
}


def random_vocoder(name, **changes):
    """A vocoder of transformers, with statistics of the spectrogram and weights of a trained one's size."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, f"{name}Config")(**SETTINGS | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 100
            parameter.normal_(0, fan_in**-0.5)
        model.mean.normal_(-4, 1)
        model.scale.uniform_(1, 3)
    return model


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", hifigan.ARCHITECTURES)
def test_the_samples_are_those_of_transformers(name, normalize):
    theirs = random_vocoder(name, normalize_before=normalize)
    config = hifigan.config_from_hugging_face(theirs.config.to_dict())
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = read(hifigan.sources(arrays, config))["generator"]
    graphdef = functional.declare(lambda rngs: HifiGan(config, rngs=rngs)).graphdef
    mel = (2 * np.random.default_rng(0).standard_normal((2, 17, 12)) - 4).astype(np.float32)
    run = jax.jit(lambda params, mel: functional.bind(graphdef, params)(mel, jnp.array([17, 17])))
    with torch.no_grad():
        expected = theirs(torch.tensor(mel)).numpy()
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(run(params, mel), expected, atol=2e-6)
    again = hifigan.to_hugging_face({"generator": params}, config)
    assert again.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(again[key], value)


@pytest.mark.parametrize("name", hifigan.ARCHITECTURES)
def test_a_folder_becomes_a_run_and_is_compared(tmp_path, name):
    random_vocoder(
        name, sampling_rate=16_000, upsample_rates=[4, 4, 4], upsample_kernel_sizes=[8, 8, 8]
    ).save_pretrained(tmp_path / "theirs")
    mel = {"hop_length": 4, "win_length": 16, "num_mel_bins": 12}
    transformers.SpeechT5FeatureExtractor(**mel).save_pretrained(tmp_path / "theirs")
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    assert {"front end", "samples"} <= {check.name for check in verdict.checks}
    experiment = LoadedRun.read(tmp_path / "run").experiment
    assert (experiment.objective.kind, experiment.model.kind) == ("vocoder", "hifigan")
    assert (experiment.frontend.mel.hop, experiment.frontend.mel.window) == (64, 256)


def test_without_an_extractor_the_spectrograms_are_speecht5s_at_the_vocoders_hop(tmp_path):
    random_vocoder(hifigan.SPEECH_T5).save_pretrained(tmp_path)
    mel = read_folder(tmp_path).experiment.frontend.mel
    assert (mel.sample_rate, mel.hop, mel.window, mel.num_mel_bins) == (22_050, 40, 160, 12)


def test_what_cannot_be_imported_is_named(tmp_path):
    theirs = random_vocoder(hifigan.FAST_SPEECH_2)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path, "config.json", {key: value for key, value in config.items() if key != "sampling_rate"})
    with pytest.raises(ExportError, match="no sampling_rate"):
        read_folder(tmp_path)
    write_json(tmp_path, "config.json", config | {"upsample_kernel_sizes": [8, 8, 2]})
    with pytest.raises(ExportError, match="8 taps does not give 5"):
        read_folder(tmp_path)
    write_json(tmp_path, "config.json", config | {"upsample_rates": [10**9, 4, 2]})
    with pytest.raises(ExportError, match="not possible"):
        read_folder(tmp_path)
    arrays = {f"{name}_g": value.numpy() for name, value in theirs.state_dict().items()}
    with pytest.raises(ValueError, match="remove_weight_norm"):
        hifigan.sources(arrays, hifigan.config_from_hugging_face(config))
