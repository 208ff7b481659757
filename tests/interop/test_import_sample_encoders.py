"""Folders of wav2vec 2.0, HuBERT, WavLM and data2vec become runs that work, and go back; damaged ones are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.storage.units import FrameGrid
from jax_speechlm.compression.quantize import quantize_run
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import wav2vec2, weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.training.runs import LoadedRun
from jax_speechlm.units.features import Hidden
from tests.interop.foreign_folders import CONTRAST, change_json, load, write_sample_encoder
from tests.training.tiny import WAV2VEC2

GROUP = WAV2VEC2.replace(relative=None)
LARGE = {"convolution_norm": "layer", "convolution_bias": True, "pre_norm": True}
DATA2VEC = GROUP.replace(position_layers=2, convolution_norm="layer")
FOLDERS = {
    "Wav2Vec2Model": GROUP,
    "Wav2Vec2ForCTC": GROUP.replace(**LARGE),
    "Wav2Vec2ForPreTraining": GROUP.replace(**LARGE),
    "Wav2Vec2ForXVector": GROUP,
    "HubertForCTC": GROUP.replace(family="hubert"),
    "HubertForSequenceClassification": GROUP.replace(family="hubert", input_norm=False),
    "WavLMForXVector": WAV2VEC2,
    "WavLMForCTC": WAV2VEC2.replace(**LARGE),
    "Data2VecAudioForCTC": DATA2VEC,
    "Data2VecAudioForSequenceClassification": DATA2VEC,
}
WEIGHTED = "WavLMForXVector", "Data2VecAudioForSequenceClassification"
"""Classes whose head takes a weighted sum of layers here."""


@pytest.mark.parametrize("architecture", FOLDERS)
def test_a_folder_becomes_a_run_and_comes_back_as_it_was(tmp_path, architecture):
    config, head = FOLDERS[architecture], wav2vec2.ARCHITECTURES[architecture]
    is_weighted = architecture in WEIGHTED
    arrays = write_sample_encoder(tmp_path / "theirs", config, head, is_weighted=is_weighted)
    assert ("layer_weights" in arrays) == is_weighted
    import_run(tmp_path / "theirs", tmp_path / "run")
    loaded = LoadedRun.read(tmp_path / "run")
    assert loaded.experiment.model == config
    assert loaded.experiment.frontend.mel == Waveform()
    assert loaded.experiment.frame_samples == 320
    write_checked(loaded, tmp_path / "again")
    original, again = load(tmp_path / "theirs", "config.json"), load(tmp_path / "again", "config.json")
    assert again["architectures"] == [architecture]
    assert again.pop("mask_time_prob") == pytest.approx(original.pop("mask_time_prob"))
    assert {name: again[name] for name in original} == original
    back = weights.read_weights(tmp_path / "again")
    for name, array in wav2vec2.renamed(arrays).items():
        np.testing.assert_allclose(back[name], array, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "theirs"
    write_sample_encoder(folder, GROUP, "ForCTC")
    return folder


def test_a_recognizer_transcribes_and_embeds_whatever_else_is_in_the_batch(theirs, tmp_path):
    import_run(theirs, tmp_path / "run")
    model, encoder = Recognizer.load(tmp_path / "run"), SpeechEncoder.load(tmp_path / "run")
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 2000, length).astype(np.int16) for length in (9000, 16_000, 3000)]
    together = [each.text for each in model.transcribe(clips)]
    assert any(together)
    assert [next(model.transcribe([clip])).text for clip in clips] == together
    vectors = list(encoder.embed(clips))
    assert [each.shape for each in vectors] == [(GROUP.num_frames(len(clip)), 16) for clip in clips]
    for clip, vector in zip(clips, vectors, strict=True):
        np.testing.assert_allclose(next(iter(encoder.embed([clip]))), vector, atol=1e-5)


def test_units_are_of_a_layer_itself_and_weights_may_be_of_8_bits(theirs, tmp_path):
    """Without the norm that an encoder with norms before its layers has at the end."""
    write_sample_encoder(tmp_path / "theirs", GROUP.replace(family="hubert", **LARGE), "Model")
    import_run(tmp_path / "theirs", tmp_path / "encoder")
    extractor = Hidden(checkpoint=str(tmp_path / "encoder"), layer=1).open()
    encoder = SpeechEncoder.load(tmp_path / "encoder")
    assert (extractor.grid, extractor.sample_rate) == (FrameGrid(320, 5), 16_000)
    clip = np.random.default_rng(0).normal(0, 2000, 9000).astype(np.int16)
    batch = {"audio": jnp.asarray(clip)[None], "audio_length": jnp.array([9000])}
    vectors, counts = extractor.extract(extractor.params, batch)
    (expected,) = encoder.embed([clip], layer=1)
    np.testing.assert_allclose(vectors[0, : int(counts[0])], expected, atol=1e-5)
    import_run(theirs, tmp_path / "run")
    quantize_run(tmp_path / "run", tmp_path / "small")
    assert next(Recognizer.load(tmp_path / "small").transcribe([clip])).text is not None


def test_pretraining_goes_on_with_the_settings_of_the_folder(tmp_path):
    write_sample_encoder(tmp_path / "theirs", GROUP, "ForPreTraining")
    objective = read_folder(tmp_path / "theirs").experiment.objective
    assert objective.mask_ratio == pytest.approx(CONTRAST.mask_ratio)
    assert objective.mask_span == pytest.approx(CONTRAST.mask_span)
    assert objective.gumbel_temperature == (0.5, 0.5)
    same = {"mask_ratio": 0.1, "mask_span": 1.0, "gumbel_temperature": (1.0, 1.0)}
    assert objective.replace(**same) == CONTRAST.replace(**same)
    change_json(tmp_path / "theirs", "config.json", proj_codevector_dim=16)
    with pytest.raises(ExportError, match="proj_codevector_dim=16 differs from codevector_dim=8"):
        read_folder(tmp_path / "theirs")


DAMAGES = {
    "another feature extractor": (
        lambda folder: change_json(folder, "preprocessor_config.json", feature_size=80),
        r"preprocessor_config.json.*feature_size=80 has no counterpart",
    ),
    "another rate": (
        lambda folder: change_json(folder, "preprocessor_config.json", sampling_rate=8000),
        r"preprocessor_config.json.*sampling_rate=8000 has no counterpart",
    ),
    "an extractor of another model": (
        lambda folder: change_json(
            folder, "preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor", feature_size=80
        ),
        r"front end gives 80 features, model.input_dim is 1",
    ),
    "another tokenizer": (
        lambda folder: change_json(folder, "vocab.json", z=40),
        r"'z', whose id is none of the table's 9",
    ),
    "an adapter": (
        lambda folder: change_json(folder, "config.json", adapter_attn_dim=16),
        r"adapter_attn_dim=16 has no counterpart here",
    ),
    "fewer convolutions": (
        lambda folder: change_json(folder, "config.json", conv_stride=[20]),
        r"one entry a convolution",
    ),
    "a count": (lambda folder: change_json(folder, "config.json", conv_dim=[4, -6]), r"conv_dim=.* is not possible"),
    "another form": (
        lambda folder: change_json(folder, "config.json", do_stable_layer_norm=7),
        r"do_stable_layer_norm=7 is not possible",
    ),
    "another norm": (
        lambda folder: change_json(folder, "config.json", feat_extract_norm="batch"),
        r"convolution_norm",
    ),
    "no weight norm": (lambda folder: _without(folder, "weight_g"), r"has no 'encoder.pos_conv_embed.*original0'"),
}


def _without(folder, last):
    arrays = {name: np.array(array) for name, array in weights.read_weights(folder).items() if last not in name}
    weights.write_weights(folder, arrays)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_its_file(theirs, tmp_path, damage):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in theirs.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(ExportError, match=message):
        read_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_norm": False}, "Wav2Vec2 normalises the input of its projection: set model.input_norm"),
        ({"position_layers": 2}, "Data2VecAudio has norms of every convolution"),
    ],
)
def test_forms_that_no_class_has_are_refused(change, message):
    with pytest.raises(ExportError, match=message):
        wav2vec2.config_to_hugging_face(GROUP.replace(**change))


def test_hubert_has_no_class_for_speakers():
    with pytest.raises(ExportError, match="transformers has no HubertForXVector"):
        wav2vec2.architecture(GROUP.replace(family="hubert"), "ForXVector")
