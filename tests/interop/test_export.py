"""Exported folders, read back without torch: the very parameters, the files' content, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, FailedCheck
from jax_speechlm.interop.hf import export, registry, speech_forms, wav2vec2_bert, weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.feature_extractor import front_end_from_hugging_face, front_end_to_hugging_face
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.interop.hf.registry import package, read_model
from jax_speechlm.models.adapter import QFormer, Stacking
from jax_speechlm.models.vocoders.vocos import VocosConfig
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.distillation import Distillation, Teacher
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.recipes import registry as recipes
from jax_speechlm.training.runs import LoadedRun
from tests.interop.tiny_runs import CHARACTERS, CLASSES, FAST, FORMER, QWEN, RUNS, TEXT, save, tiny_run


def load(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_is_read_back_bit_for_bit(tmp_path, name):
    run, out = tiny_run(name), tmp_path / "deep" / "out"
    verdict = write_checked(run, out)
    assert not verdict.is_full
    assert not verdict.failed
    assert "not opened by transformers yet" in verdict.line
    model = read_model(out)
    assert model.architecture == RUNS[name][-1]
    jax.tree.map(np.testing.assert_array_equal, model.params, package(run).params)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1

    record = load(out, folders.RECORD)
    assert record["check"]["passed"]
    assert record["step"] == 7
    assert record["experiment"] == run.experiment.model_dump(mode="json")
    assert set(record["files"]) == {file.name for file in out.iterdir()}
    card = (out / "README.md").read_text()
    assert RUNS[name][-1] in card
    assert "not yet by transformers" in card
    assert f'"kind": "{run.experiment.objective.kind}"' in card


def test_a_recognizer_says_which_id_is_what(tmp_path):
    write_checked(tiny_run("ctc"), tmp_path / "out")
    config = load(tmp_path / "out", "config.json")
    assert config["vocab_size"] == CHARACTERS.vocab_size
    assert config["pad_token_id"] == 0
    assert config["dtype"] == "float32"
    assert load(tmp_path / "out", "preprocessor_config.json")["stride"] == 2
    vocab = load(tmp_path / "out", "vocab.json")
    assert vocab["<pad>"] == 0
    assert vocab["|"] == CHARACTERS.encode(" ")[0]
    assert vocab["q"] == CHARACTERS.encode("q")[0]


def test_a_language_model_says_which_id_is_what_and_what_never_follows(tmp_path):
    write_checked(tiny_run("unit_lm"), tmp_path / "out")
    config, generation = (load(tmp_path / "out", name) for name in ("config.json", "generation_config.json"))
    boundary, size = CHARACTERS.vocab_size, config["vocab_size"]
    for settings in (config, generation):
        assert [settings[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [boundary, boundary, 0]
    assert config["max_position_embeddings"] == generation["max_length"] == 64
    ids = {token["content"]: token["id"] for token in load(tmp_path / "out", "tokenizer.json")["added_tokens"]}
    assert ids == {
        "<pad>": 0, "<|endoftext|>": boundary, "<mask>": boundary + 1, "<speech>": boundary + 2, "<text>": boundary + 3,
        **{f"<unit_{number}>": boundary + 4 + number for number in range(7)},
    }  # fmt: skip
    assert generation["suppress_tokens"] == [0, boundary + 1, *range(boundary + 11, size)]


def test_a_tied_head_is_stored_once(tmp_path):
    for name, count in (("qwen3", 1), ("llama", 2)):
        write_checked(tiny_run(name), tmp_path / name)
        arrays = weights.read_weights(tmp_path / name)
        table = arrays["model.embed_tokens.weight"].shape
        assert sum(array.shape == table for array in arrays.values()) == count


def test_a_classifiers_projection_goes_into_its_head():
    rng = np.random.default_rng(0)
    run = tiny_run("classification")
    arrays = wav2vec2_bert.to_hugging_face(run.params, FORMER, "ForSequenceClassification")
    projection, bias = rng.normal(size=(5, 16)), rng.normal(size=5)
    classes, class_bias = rng.normal(size=(3, 5)), rng.normal(size=3)
    arrays |= {"projector.weight": projection, "projector.bias": bias}
    arrays |= {"classifier.weight": classes, "classifier.bias": class_bias}
    again = read(wav2vec2_bert.sources(arrays, FORMER, "Wav2Vec2BertForSequenceClassification"))
    jax.tree.map(np.testing.assert_array_equal, again["encoder"], run.params["encoder"])
    hidden = rng.normal(size=(11, 16))
    expected = classes @ (projection @ hidden.T + bias[:, None]).mean(1) + class_bias
    np.testing.assert_allclose(hidden.mean(0) @ again["head"]["kernel"] + again["head"]["bias"], expected, rtol=1e-12)
    values = package(run).config
    assert [values["id2label"][str(number)] for number in range(3)] == list(CLASSES)


@pytest.mark.parametrize(
    ("mel", "setting"),
    [
        ({"variant": "librosa"}, "frontend.mel.variant='librosa'"),
        ({"normalize": False}, "frontend.mel.normalize=False"),
        ({"stack": 1}, "frontend.mel.stack=1"),
    ],
)
def test_front_ends_that_the_extractor_has_not_are_refused(tmp_path, mel, setting):
    with pytest.raises(ExportError, match=setting):
        write_checked(tiny_run("ctc", **mel), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_fast_conformer_brings_its_own_front_end_and_its_ids(tmp_path):
    write_checked(tiny_run("fast_conformer"), tmp_path / "out")
    config = load(tmp_path / "out", "config.json")
    assert (config["vocab_size"], config["pad_token_id"]) == (CHARACTERS.vocab_size, 0)
    assert load(tmp_path / "out", "preprocessor_config.json")["processor_class"] == "ParakeetProcessor"
    assert load(tmp_path / "out", "vocab.json")["<pad>"] == 0
    for mel in ({"variant": "kaldi"}, {"normalize": False}):
        with pytest.raises(ExportError, match="with variant nemo"):
            package(tiny_run("fast_conformer", **mel))
    classifier = altered(tiny_run("fast_conformer"), objective=Classification(classes=CLASSES))
    with pytest.raises(ExportError, match="which no class of transformers does"):
        package(classifier)


def test_front_end_there_and_back():
    mel = tiny_run("ctc", stack=4).experiment.frontend.mel
    assert front_end_from_hugging_face(front_end_to_hugging_face(mel)) == mel
    with pytest.raises(ExportError, match="ClapFeatureExtractor"):
        front_end_from_hugging_face({"feature_extractor_type": "ClapFeatureExtractor"})


def altered(run, **changes):
    return dataclasses.replace(run, experiment=run.experiment.replace(**changes))


@pytest.mark.parametrize(("name", "student"), [("ctc", CTC()), ("qwen3", CausalLM())])
def test_what_was_distilled_is_exported_as_if_trained_alone(tmp_path, name, student):
    """And comes back as such: what it learnt from is not in the folder."""
    run = tiny_run(name)
    teacher = Teacher(checkpoint="runs/teacher", model=run.experiment.model, frontend=run.experiment.frontend)
    distilled = altered(run, objective=Distillation(student=student, teachers=(teacher,)))
    assert not write_checked(distilled, tmp_path / "out").failed
    jax.tree.map(np.testing.assert_array_equal, package(distilled).arrays, package(run).arrays)
    assert import_run(tmp_path / "out", tmp_path / "run").failed == ()
    assert LoadedRun.read(tmp_path / "run").experiment.objective == student


def test_models_without_a_class_in_transformers_are_refused():
    qwen, listener = tiny_run("qwen3"), tiny_run("speech_lm")
    form = listener.experiment.model
    for adapter in (Stacking(frames=4, hidden_dim=32), Stacking(frames=2, hidden_dim=32, bias=False), QFormer(dim=16)):
        with pytest.raises(ExportError, match=r"has the adapter .*frames=4, hidden_dim=32, bias=False"):
            package(altered(listener, model=form.replace(adapter=adapter)))
    windowed = tiny_run("speech_lm of windows")
    for run, seconds in ((listener, 2), (tiny_run("ctc"), 2), (windowed, 1)):
        wrong = FrontEnd(mel=WhisperMel(num_mel_bins=20, window_seconds=seconds))
        with pytest.raises(ExportError, match=r"variant='whisper' has no|takes windows of all its 100 frames"):
            package(altered(run, frontend=wrong))
    with pytest.raises(ExportError, match="of a fast_conformer no Voxtral"):
        package(altered(listener, model=form.replace(encoder=FAST)))
    with pytest.raises(ExportError, match="as Qwen's own tokenizer does"):
        package(altered(qwen, model=qwen.experiment.model.replace(query_key_norm=False, qkv_bias=True)))
    with pytest.raises(ExportError, match="norm='rms' only"):
        package(altered(listener, model=form.replace(transformer=form.transformer.replace(norm="layer"))))
    with pytest.raises(ExportError, match="no class classifies by what follows"):
        package(altered(qwen, objective=Classification(classes=CLASSES), data=TEXT.replace(packed=False)))
    with pytest.raises(ExportError, match="norm='rms' only"):
        package(altered(qwen, model=QWEN.replace(norm="layer")))


def test_only_an_earlier_export_is_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"such as thesis\.tex"):
        write_checked(tiny_run("ctc"), out)
    (out / "thesis.tex").unlink()
    write_checked(tiny_run("ctc"), out)
    write_checked(tiny_run("best_rq"), out)
    assert load(out, "config.json")["architectures"] == ["Wav2Vec2BertModel"]
    assert not (out / "vocab.json").exists()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"thesis\.tex beside an earlier export"):
        write_checked(tiny_run("ctc"), out)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_differs_does_not_appear(tmp_path, monkeypatch):
    def write_wrongly(folder, made):
        arrays = made.arrays | {"lm_head.bias": np.nextafter(made.arrays["lm_head.bias"], np.float32(1))}
        write_model(folder, made._replace(arrays=arrays))

    out, write_model = tmp_path / "out", export.write_model
    write_checked(tiny_run("best_rq"), out)
    monkeypatch.setattr(export, "write_model", write_wrongly)
    with pytest.raises(FailedCheck, match=r"\['head'\]\['bias'\] differs"):
        write_checked(tiny_run("ctc"), out)
    assert load(out, "config.json")["architectures"] == ["Wav2Vec2BertModel"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.rejected"}
    assert "**FAILED**" in (tmp_path / "out.rejected" / "README.md").read_text()


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "check_export", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_checked(tiny_run("ctc"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_run_and_checks_it_later(tmp_path, capsys):
    save(tmp_path / "run", tiny_run("ctc"))
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"--to hf --check {out}" in said
    check = ["export", str(tmp_path / "run"), "--check", str(out)]
    assert cli.main(check) == 0
    assert "bit for bit" in capsys.readouterr().out

    settings = load(out, "config.json")
    (out / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-3}))
    assert cli.main(check) == USER_ERROR
    assert "config.json is not what the checkpoint gives" in capsys.readouterr().err
    assert not load(out, folders.RECORD)["check"]["passed"]
    assert "**FAILED**" in (out / "README.md").read_text()

    assert cli.main(["export", str(tmp_path / "run")]) == USER_ERROR
    assert "either --out" in capsys.readouterr().err
    assert cli.main([*check[:-1], str(tmp_path / "run")]) == USER_ERROR
    assert "no export of jax_speechlm wrote it" in capsys.readouterr().err


def test_a_vocoder_that_no_class_computes_is_refused():
    experiment = tiny_run("vocoder").experiment
    with pytest.raises(ExportError, match="no class of transformers is a vocos"):
        registry.settings(experiment.replace(model=VocosConfig(input_dim=20)), None)
    with pytest.raises(ExportError, match=r"frontend.mel.hop=200 is 12.5 ms at 16000 Hz"):
        registry.settings(experiment.replace(frontend=FrontEnd(mel=SynthesisMel(num_mel_bins=20, hop=200))), None)


@pytest.mark.parametrize("name", ["fsdd/cnn", "fsdd/lstm", "fsdd/transformer"])
def test_encoders_that_transformers_lacks_are_refused(name):
    experiment = recipes.load(name)
    with pytest.raises(
        ExportError, match=f"no class for this task on an encoder of model.kind {experiment.model.kind}"
    ):
        speech_forms.headed_settings("ForSequenceClassification", experiment, None)
