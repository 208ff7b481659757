"""A codec by `load`: code ids and samples of recordings; as units of a set and of a language model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from data_pipelines.storage.units import open_unit_ids, read_units
from jax_speechlm import cli
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.lm.units import UnitDecoder, UnitModel
from jax_speechlm.inference.unit_encoder import UnitEncoder
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.recipes.experiment import Experiment, UnitText
from jax_speechlm.units.features import CodecLatents, units_of_codec
from tests.data_pipelines.prepared import write_prepared
from tests.data_pipelines.unit_sets import make_units
from tests.evaluation.runs import save_run
from tests.interop.tiny_runs import CODEC, save, tiny_run
from tests.objectives.text import MODEL, TOKENIZER

RATE = 16_000


def recording(seed, length):
    rng = np.random.default_rng(seed)
    return (6000 * np.sin(np.cumsum(rng.uniform(0.02, 0.6, length))) + rng.normal(0, 300, length)).astype(np.int16)


LENGTHS = (4000, 128, 127, 1, 33_333)


@pytest.fixture(scope="module")
def run():
    """A codec with vectors of its encoder's as codebook, so that many codes are in use."""
    run = tiny_run("codec")
    latents = part(run, "latents", recording(9, 4000)[None] / np.float32(2**15))
    codec = run.params["autoencoder"]
    vectors = latents[0, : len(codec["quantizer"]["vectors"])]
    codec = codec | {"quantizer": codec["quantizer"] | {"vectors": vectors}}
    return dataclasses.replace(run, params={"autoencoder": codec})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    return save(tmp_path_factory.mktemp("codec"), run)


def part(run, name, row):
    """Returns what a method of the codec gives for a row by itself."""
    graphdef = functional.declare(lambda rngs: WavTokenizer(CODEC, rngs=rngs)).graphdef

    def call(params, row, length):
        return getattr(functional.bind(graphdef, params), name)(row, length)[0]

    return np.asarray(jax.jit(call)(run.params["autoencoder"], row, np.array([row.shape[1]])))


def directly(run, samples):
    ids = part(run, "encode", samples[None] / np.float32(2**15))
    return ids[0], part(run, "decode", ids)[0]


def test_codes_and_samples_are_those_of_the_model_by_itself(folder, run):
    model = jax_speechlm.load(folder)
    assert model.abilities == ("encode_codes", "decode_codes")
    recordings = [recording(seed, length) for seed, length in enumerate(LENGTHS)]
    ids = model.encode_codes(recordings)
    audio = model.decode_codes(ids)
    assert len(np.unique(np.concatenate(ids))) > 3
    for samples, own, decoded in zip(recordings, ids, audio, strict=True):
        expected, expected_audio = directly(run, samples)
        np.testing.assert_array_equal(own, expected)
        assert len(own) == -(-len(samples) // CODEC.hop)
        assert len(decoded) == len(own) * CODEC.hop
        np.testing.assert_allclose(decoded, np.clip(expected_audio, -1, 1), atol=1e-5)
    (first,) = model.encode_codes(recordings[4])
    np.testing.assert_array_equal(first, ids[4])


def test_long_recordings_are_cut_at_whole_codes(folder):
    model = jax_speechlm.load(folder)
    (ids,) = model.encode_codes([recording(4, 5 * RATE + 7)], max_seconds=2.0)
    assert len(ids) == -(-(5 * RATE + 7) // CODEC.hop)
    long = np.resize(ids, 31 * RATE // CODEC.hop)
    (audio,) = model.decode_codes([long])
    assert len(audio) == len(long) * CODEC.hop
    most = int(30 * RATE / CODEC.hop)
    (part,) = model.decode_codes([long[:most]])
    np.testing.assert_allclose(audio[: len(part)], part, atol=1e-6)


def test_ids_that_are_no_codes_and_no_codes_at_all(folder):
    model = jax_speechlm.load(folder)
    for wrong in (np.array([0, CODEC.codebook_size]), np.array([-1]), np.zeros((2, 2), int)):
        with pytest.raises(ValueError, match="codes are rows of ids from 0 to 8"):
            model.decode_codes([wrong])
    (audio,) = model.decode_codes([np.zeros(0, int)])
    assert audio.shape == (0,)
    with pytest.raises(DataError, match=r"missing\.wav"):
        model.encode_codes(["missing.wav"])


def test_a_codec_labels_a_set_and_its_codes_are_the_units(folder, tmp_path, capsys):
    clips = [recording(0, 9000), recording(1, 12_100), np.zeros(0, np.int16)]
    write_prepared(tmp_path / "tones", {"test": [(samples, "") for samples in clips]})
    assert cli.main(["units", "label", str(folder), "--sets", "tones", "--data-dir", str(tmp_path)]) == 0
    assert f"--data.units {folder / 'units'}" in capsys.readouterr().out
    units = read_units(folder / "units")
    assert (units.num_units, units.merges_repeats) == (CODEC.codebook_size, False)
    index = read_index(tmp_path / "tones", "test")
    stored = open_unit_ids(index, folder / "units")
    encoded = jax_speechlm.load(folder).encode_codes(clips[:2])
    assert stored.lengths.tolist() == [*map(len, encoded), 0]
    for row, expected in enumerate(encoded):
        np.testing.assert_array_equal(stored.read(row, 0, len(expected)), expected)
    for own, expected in zip(UnitEncoder.load(folder / "units").encode(clips[:2]), encoded, strict=True):
        np.testing.assert_array_equal(own, expected)


def test_a_codec_that_changed_is_refused(folder, run, tmp_path):
    units = units_of_codec(folder, tmp_path / "units")
    features = CodecLatents.model_validate(units.about["features"])
    assert features.checkpoint.endswith("checkpoints/7")
    changed = jax.tree.map(lambda x: 2 * x, run.params)
    other = save(tmp_path / "run", dataclasses.replace(run, params=changed))
    with pytest.raises(CheckpointError, match="has changed"):
        features.replace(checkpoint=str(other)).read()


@pytest.fixture(scope="module")
def unit_lm(tmp_path_factory, folder):
    root = tmp_path_factory.mktemp("unit_lm")
    units = units_of_codec(folder, root / "units")
    data = UnitText(sets=("tones",), units=str(root / "units"), context=64, tokens_per_batch=64)
    experiment = Experiment(data=data, objective=UnitLM(num_units=CODEC.codebook_size), model=MODEL)
    save_run(root / "run", experiment, TOKENIZER, units.fingerprint)
    return root


def test_generate_writes_speech_from_a_spoken_prompt(folder, unit_lm, tmp_path, capsys):
    samples = recording(1, 3000)
    soundfile.write(tmp_path / "prompt.wav", samples, RATE)
    command = ["generate", str(unit_lm / "run"), "--audio-prompts", str(tmp_path / "prompt.wav")]
    command += ["--max-tokens", "12", "--samples", "2", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--modality", "units"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["wav"] for line in lines] == [str(tmp_path / "out" / f"{number}.wav") for number in range(2)]
    model = jax_speechlm.load(folder)
    (prompt,) = model.encode_codes([samples])
    for line in lines:
        units = [unit for part in line["parts"] for unit in part.get("units", [])]
        assert units
        (expected,) = model.decode_codes([np.concatenate([prompt, units]).astype(int)])
        written, rate = soundfile.read(line["wav"])
        assert rate == RATE
        np.testing.assert_allclose(written, expected, atol=1e-4)
    # every code of the prompt is in the document, repeats too
    ids = UnitModel.load(unit_lm / "run").prompt([prompt])
    assert len(ids) == len(prompt) + 2


def test_text_alone_has_no_file(unit_lm, tmp_path, capsys):
    command = ["generate", str(unit_lm / "run"), "a cab", "--modality", "text", "--max-tokens", "3"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["wav"] is None


def test_clusters_are_no_sound(unit_lm, tmp_path):
    make_units(tmp_path / "units")
    (tmp_path / "units" / "units.json").write_text(
        (tmp_path / "units" / "units.json").read_text().replace('"noise"', '{"kind": "mfcc"}')
    )
    with pytest.raises(CheckpointError, match="no samples can be computed"):
        UnitDecoder.load(tmp_path / "units")
    assert cli.main(["generate", str(unit_lm / "run"), "--units", str(tmp_path / "units"), "--out", "x"]) == USER_ERROR
