"""Exported folders become runs again, with the same parameters, and only whole runs appear."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, FailedCheck
from jax_speechlm.interop.hf import import_
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.text_heads import without_vocabulary_map
from jax_speechlm.nn.lora import LoRA, merge
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import load, write_json
from tests.interop.tiny_runs import FORMER, RUNS, tiny_run
from tests.training.tiny import OBJECTIVES


def files_of(folder):
    """What is in a folder, without what names the checkpoint that it is from."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in ("README.md", folders.RECORD)}


@pytest.mark.parametrize("name", RUNS)
def test_an_exported_run_comes_back_and_goes_out_again_byte_for_byte(tmp_path, name):
    run = tiny_run(name)
    if name == "text classification":  # its class has no vocabulary map
        run.params["transformer"] = without_vocabulary_map(run.params["transformer"])
    write_checked(run, tmp_path / "out")
    verdict = import_run(tmp_path / "out", tmp_path / "run")
    assert not verdict.failed
    if name == "speech_lm":  # LoRA is merged
        model = run.experiment.model
        experiment = run.experiment.replace(model=model.replace(lora=LoRA()))
        run = dataclasses.replace(run, params=merge(run.params, model.lora)[0], experiment=experiment)
    again = LoadedRun.read(tmp_path / "run")
    for group, params in again.params.items():
        jax.tree.map(np.testing.assert_array_equal, params, run.params[group])
    if "transformer" in run.params or name in ("ctc", "joint"):
        assert again.tokenizer.fingerprint == run.tokenizer.fingerprint
    assert again.experiment.model == run.experiment.model
    assert again.experiment.frontend == run.experiment.frontend
    assert Experiment.read(tmp_path / "run" / "config.json") == again.experiment
    kinds = {"joint": "ctc", "best_rq": "encoder"}
    assert again.experiment.objective.kind == kinds.get(run.experiment.objective.kind, run.experiment.objective.kind)
    write_checked(again, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")


def test_what_only_training_needs_is_not_missed(tmp_path):
    run = tiny_run("vocoder")
    adversarial = run.experiment.replace(objective=OBJECTIVES["vocoder"])
    write_checked(dataclasses.replace(run, experiment=adversarial), tmp_path / "out")
    import_run(tmp_path / "out", tmp_path / "run")
    assert LoadedRun.read(tmp_path / "run").params.keys() == {"generator"}


def test_a_voice_needs_the_record_of_its_export(tmp_path):
    write_checked(tiny_run("tts"), tmp_path / "out")
    (tmp_path / "out" / folders.RECORD).unlink()
    with pytest.raises(ExportError, match="does not say which spectrograms"):
        read_folder(tmp_path / "out")


def test_a_speech_language_model_says_how_it_is_asked_and_what_stands_for_speech(tmp_path):
    write_checked(tiny_run("speech_lm"), tmp_path / "out")
    (tmp_path / "out" / folders.RECORD).unlink()
    assert read_folder(tmp_path / "out").experiment.objective == SpeechLM()
    config = load(tmp_path / "out", "config.json")
    for wrong in ({"audio_token_id": None}, {"audio_token_id": 10**5}, {"audio_token_id": 30}, {"audio_config": None}):
        write_json(tmp_path / "out", "config.json", config | wrong)
        with pytest.raises(ExportError, match=r"audio_|ids that must differ|id 100000|is it a Whisper encoder"):
            read_folder(tmp_path / "out")
    for part in ("audio_config", "text_config"):
        for wrong in ({"auto_map": {"AutoModel": "x"}}, {"quantization_config": {"bits": 4}}, {"hidden_size": 10**9}):
            write_json(tmp_path / "out", "config.json", config | {part: config[part] | wrong})
            with pytest.raises(ExportError, match=rf"config\.json/{part}"):
                read_folder(tmp_path / "out")
    write_json(tmp_path / "out", "config.json", config)
    for said, problem in (({"task": "sing", "before": "", "behind": ""}, "task"), (["transcribe"], "does not give")):
        write_json(tmp_path / "out", "speech_prompt.json", said)
        with pytest.raises(ExportError, match=problem):
            read_folder(tmp_path / "out")
    (tmp_path / "out" / "speech_prompt.json").unlink()
    with pytest.raises(ExportError, match=r"speech_prompt.json is missing.*Write"):
        read_folder(tmp_path / "out")


def test_a_record_is_believed_only_of_the_files_that_it_is_of(tmp_path, capsys):
    write_checked(tiny_run("qwen3"), tmp_path / "out")
    config = load(tmp_path / "out", "config.json")
    write_json(tmp_path / "out", "config.json", config | {"max_position_embeddings": 32})
    import_run(tmp_path / "out", tmp_path / "run")
    assert "left aside" in capsys.readouterr().err
    run = LoadedRun.read(tmp_path / "run")
    assert run.tokenizer.kind == "hugging_face"
    assert run.experiment.data.context == 32


def test_an_imported_encoder_embeds(tmp_path):
    write_checked(tiny_run("best_rq"), tmp_path / "out")
    (tmp_path / "out" / folders.RECORD).unlink()
    import_run(tmp_path / "out", tmp_path / "run")
    encoder = SpeechEncoder.load(tmp_path / "run")
    assert encoder.model.dim == FORMER.dim
    experiment = LoadedRun.read(tmp_path / "run").experiment
    objective = experiment.objective.build(experiment.model, experiment.frontend)
    with pytest.raises(ValueError, match="--from"):
        objective.loss({}, {}, None)


def test_a_run_that_differs_does_not_appear(tmp_path, monkeypatch):
    write_checked(tiny_run("ctc"), tmp_path / "out")
    place = import_.place
    monkeypatch.setattr(import_, "place", lambda *args: jax.tree.map(lambda x: -x, place(*args)))
    with pytest.raises(FailedCheck, match="differs"):
        import_run(tmp_path / "out", tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "run.rejected"}


def test_only_an_earlier_import_is_replaced(tmp_path):
    write_checked(tiny_run("ctc"), tmp_path / "out")
    import_run(tmp_path / "out", tmp_path / "run")
    record = load(tmp_path / "run", folders.RECORD)
    assert record["check"]["passed"]
    assert record["check"]["read_by"].keys() == {"jax_speechlm"}  # transformers did not read it
    import_run(tmp_path / "out", tmp_path / "run", dtype="bfloat16")
    (tmp_path / "run" / "notes").write_text("mine")
    with pytest.raises(ExportError, match="notes beside an earlier"):
        import_run(tmp_path / "out", tmp_path / "run")


def test_bfloat16_is_rounded_and_nothing_else(tmp_path):
    run = tiny_run("qwen3")
    write_checked(run, tmp_path / "out")
    assert not import_run(tmp_path / "out", tmp_path / "run", dtype="bfloat16").failed
    found = LoadedRun.read(tmp_path / "run")
    expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), run.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    (continuation,), *_ = LanguageModel.load(tmp_path / "run").generate(["the"], max_tokens=2)
    assert continuation.num_tokens <= 2


def test_a_text_classifier_by_its_first_token_is_read_and_another_way_is_refused(tmp_path):
    write_checked(tiny_run("text classification"), tmp_path / "out")
    config = load(tmp_path / "out", "config.json")
    write_json(tmp_path / "out", "config.json", config | {"classifier_pooling": "cls"})
    assert read_folder(tmp_path / "out").experiment.objective.pooling == "cls"
    write_json(tmp_path / "out", "config.json", config | {"classifier_pooling": "max"})
    with pytest.raises(ExportError, match="pooling"):
        read_folder(tmp_path / "out")
