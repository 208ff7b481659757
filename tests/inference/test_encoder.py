"""What an encoder's layers make of recordings does not depend on other recordings; probes find what is there."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.audio.decode import AudioError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.comparison import compare, read_report
from jax_speechlm.evaluation.probing import fit_layers
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
from jax_speechlm.recipes.experiment import Experiment, Speech, Text
from tests.data_pipelines.prepared import noise, write_prepared
from tests.evaluation.runs import save_run

MEL = LogMel(num_mel_bins=8, stack=2)
MODEL = ConformerConfig(input_dim=MEL.input_dim, dim=8, num_layers=2, num_heads=2, kernel_size=3)
LENGTHS = (5_000, 14_000, 9_000)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A pretrained run and three recordings."""
    folder = tmp_path_factory.mktemp("embed")
    experiment = Experiment(
        data=Speech(sets=("tones",)), objective=Wav2Vec2(codes=4, code_dim=4), frontend=FrontEnd(mel=MEL), model=MODEL
    )
    save_run(folder / "run", experiment, None)
    for number, length in enumerate(LENGTHS):
        soundfile.write(folder / f"{number}.wav", noise(number, length), 16_000, subtype="PCM_16")
    return folder


def files(folder):
    return [folder / f"{number}.wav" for number in range(len(LENGTHS))]


def load(workplace):
    """The run's encoder with parameters as at the start of training: three times as large, they magnify rounding."""
    encoder = SpeechEncoder.load(workplace / "run")
    return dataclasses.replace(encoder, params=jax.tree.map(lambda leaf: leaf / 3, encoder.params))


def test_every_layer_is_that_of_the_recording_alone(workplace):
    """Front end and layers sum in another order where a row is longer: what remains is rounding.

    In float64 the two agree to 1e-12. In float32 the normalised log-mel of noise differs by up to 3e-5.
    """
    encoder = load(workplace)
    bound = functional.bind(functional.declare(lambda rngs: Conformer(MODEL, rngs=rngs)).graphdef, encoder.params)
    expected = []
    for number, length in enumerate(LENGTHS):
        batch = {"audio": noise(number, length)[None], "audio_length": np.array([length], np.int32)}
        x, frames = features(jax.tree.map(jax.numpy.asarray, batch), encoder.frontend, None)
        _, taps = bound(x, frames, taps=(1, 2))
        expected.append([bound.embed(x)[0], taps[1][0], taps[2][0]])
    for layer in range(3):
        for found, each in zip(encoder.embed(files(workplace), layer=layer), expected, strict=True):
            np.testing.assert_allclose(found, each[layer], atol=3e-4)


def test_padding_and_other_rows_change_no_bit(workplace):
    encoder = load(workplace)
    rng = np.random.default_rng(0)

    def batch(junk, others):
        audio = np.zeros((3, 16_000), np.int16)
        for row, length in enumerate(LENGTHS):
            audio[row, :length] = noise(row, length)
            audio[row, length:] = rng.integers(-30_000, 30_000, 16_000 - length) if junk else 0
        lengths = np.array(LENGTHS, np.int32)
        if others:
            audio[1:], lengths[1:] = rng.integers(-30_000, 30_000, (2, 16_000)), (16_000, 3_000)
        ids = np.arange(3, dtype=np.int32)
        return {"audio": audio, "audio_length": lengths, "example_id": ids, "weight": np.ones(3, np.float32)}

    clean, mean = encoder.frames(iter([batch(False, False)]), 2), encoder.pooled(iter([batch(False, False)]), 3)
    junk = encoder.frames(iter([batch(True, False)]), 2)
    for row in range(3):
        np.testing.assert_array_equal(junk[row], clean[row])
    np.testing.assert_array_equal(encoder.pooled(iter([batch(True, False)]), 3), mean)
    np.testing.assert_array_equal(encoder.frames(iter([batch(True, True)]), 2)[0], clean[0])
    np.testing.assert_allclose(mean[:, 2], [clean[row].mean(0) for row in range(3)], atol=1e-5)


def test_embed_writes_a_vector_a_file_or_a_frame(workplace):
    run, out = str(workplace / "run"), workplace / "new" / "vectors.npz"
    assert cli.main(["embed", run, *map(str, files(workplace)), f"--out={out}"]) == 0
    assert cli.main(["embed", run, *map(str, files(workplace)), f"--out={out}.frames", "--frames"]) == 0
    pooled, every = np.load(out), np.load(f"{out}.frames")
    assert pooled["files"].tolist() == [str(file) for file in files(workplace)]
    assert every["lengths"].tolist() == [MEL.num_frames(length) for length in LENGTHS]
    assert every["frame_seconds"] == 0.02
    ends = np.cumsum(every["lengths"])
    means = [part.mean(0) for part in np.split(every["embeddings"], ends[:-1])]
    np.testing.assert_allclose(pooled["embeddings"], means, atol=1e-6)


def test_what_cannot_be_embedded_says_why(workplace, tmp_path, capsys):
    encoder = SpeechEncoder.load(workplace / "run")
    soundfile.write(tmp_path / "short.wav", noise(0, 100), 16_000)
    with pytest.raises(AudioError, match=r"short\.wav: too short for a single frame"):
        list(encoder.embed([tmp_path / "short.wav"]))
    with pytest.raises(ValueError, match=r"between 0 \(the input\) and 2 \(the output\), got 3"):
        list(encoder.embed(files(workplace), layer=3))
    text = Experiment(
        data=Text(sets=("x",), context=8, tokens_per_batch=8),
        objective=CausalLM(),
        model=TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16),
    )
    save_run(tmp_path / "text", text, CharTokenizer("ab"))
    assert cli.main(["embed", str(tmp_path / "text"), "x.wav", "--out=x.npz"]) == USER_ERROR
    assert "causal_lm, whose model has no speech encoder" in capsys.readouterr().err


def test_a_probe_finds_what_a_layer_tells_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = np.array(list("abc"))[rng.integers(0, 3, 300)]
    telling = rng.normal(size=(300, 4)) + 8 * (labels[:, None] == np.array(list("abca")))
    layers = np.stack([rng.normal(size=(300, 4)), telling], axis=1).astype(np.float32)
    folds = [(np.arange(100, 300), np.arange(100)), (np.arange(100), np.arange(100, 300))]
    chance, sure = (right.mean() for right in fit_layers(layers, labels, folds))
    assert chance < 0.5
    assert sure > 0.98


def check_measures(path, accuracies):
    """The items of a report have the accuracies of its probes, and are compared in pairs."""
    measures = read_report(path).measures()
    names = {f"{source}, layer {layer}": value for (source, layer), value in accuracies.items()}
    assert measures.keys() == names.keys()
    for name, accuracy in names.items():
        right, count = measures[name].terms.sum(0)
        np.testing.assert_allclose(right / count, accuracy)
    assert {each.difference for each in compare(read_report(path), read_report(path))} == {0.0}


def test_probes_of_a_run_on_loud_and_quiet_clips(workplace, capsys):
    """Normalised features do not tell how loud a clip is; the log-mel statistics do."""
    texts = ["loud", "quiet"]
    clips = [((noise(n, 4_000 + 500 * (n % 3)) // (1, 30)[n % 2]).astype(np.int16), texts[n % 2]) for n in range(24)]
    write_prepared(workplace / "data" / "clips", {"train": clips[:16], "test": clips[16:]})
    options = ["--sets", "clips", "--target", "text", f"--data-dir={workplace / 'data'}", "--random"]
    assert cli.main(["probe", str(workplace / "run"), *options]) == 0
    folder = workplace / "run" / "probe" / "clips-text"
    report = json.loads((folder / "report.json").read_text())
    probes = {(each["source"], each["layer"]): each["accuracy"] for each in report["probes"]}
    assert set(probes) == {(source, n) for source in ("encoder", "random encoder") for n in range(3)} | {("log-mel", 0)}
    assert probes["log-mel", 0] == 1
    assert (report["classes"], report["utterances"], report["majority"]) == (2, 8, 0.5)
    assert "<svg" in (folder / "report.html").read_text()
    check_measures(folder / "report.json", probes)
    assert "most frequent class" in capsys.readouterr().out
    assert cli.main(["probe", str(workplace / "run"), *options, "--leave-out=text"]) == USER_ERROR
    assert "has 1 classes to learn from" in capsys.readouterr().err
