"""Text encoders of other writers become runs that embed texts, and go back as they were."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_speechlm
from jax_speechlm import cli
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.text_embed import TextEmbedder
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf import weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.registry import package
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.text_encoder import TextEncoding
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.runs import LoadedRun
from jax_speechlm.training.warm_start import take_over_all
from tests.interop.foreign_folders import SPECIAL, TEXTS, change_json, load, write_json, write_text_model

MORE = [*TEXTS, "", "a", "日本", "the cat " * 40]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def write_encoder(folder, kind, **modules):
    """An encoder, with sentence-transformers' files where there are `modules`: settings of the pooling."""
    arrays = write_text_model(folder, kind, architecture=families.ENCODERS[kind], **SPECIAL[kind])
    if modules:
        (folder / "1_Pooling").mkdir()
        write_json(folder, "modules.json", MODULES)
        write_json(folder, "1_Pooling/config.json", {"word_embedding_dimension": 16} | modules)
        write_json(folder, "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    return arrays


def hidden_states(run, row):
    """The last hidden states of a row of ids by itself."""
    size = Vocabulary.of(run.tokenizer).size
    graphdef = functional.declare(lambda rngs: Transformer(run.experiment.model, size, rngs=rngs)).graphdef

    @jax.jit
    def encode(params, tokens):
        place = jnp.arange(tokens.shape[1])[None]
        return functional.bind(graphdef, params)(tokens, jnp.ones_like(tokens), place)[0]

    return np.asarray(encode(run.params["transformer"], jnp.asarray([row], jnp.int32)))


@pytest.mark.parametrize("kind", families.ENCODERS)
def test_an_encoder_becomes_a_run_and_a_folder_again(tmp_path, kind):
    arrays = write_encoder(tmp_path / "theirs", kind)
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed
    run = LoadedRun.read(tmp_path / "run")
    has_pooler = any(name.startswith("pooler.") for name in arrays)
    assert run.experiment.objective == TextEncoding(pooler=has_pooler)
    write_checked(run, tmp_path / "again")
    again = weights.read_weights(tmp_path / "again")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    config, written = (load(tmp_path / folder, "config.json") for folder in ("theirs", "again"))
    assert config | {name: written[name] for name in config} == config
    assert read_folder(tmp_path / "again").experiment == run.experiment


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A folder of sentence-transformers, and the run of it."""
    folder = tmp_path_factory.mktemp("sentences")
    write_encoder(folder / "theirs", "bert", pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    import_run(folder / "theirs", folder / "run")
    return folder


def test_a_text_is_the_mean_of_its_hidden_states_at_unit_length(sentences):
    """Cut to as many tokens as the folder says, with those around the text kept; whatever else is in the batch."""
    model = jax_speechlm.load(sentences / "run")
    assert model.abilities == ("embed",)
    vectors, run = model.embed(MORE), model.model.run
    assert run.experiment.data.context == 24
    enclose = Vocabulary.of(run.tokenizer).enclose
    for text, vector in zip(MORE, vectors, strict=True):
        hidden = hidden_states(run, enclose(run.tokenizer.encode(text)[:22]))
        mean = hidden.mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
        np.testing.assert_allclose(model.embed(text)[0], vector, atol=1e-5)
        first = hidden[0] / np.linalg.norm(hidden[0])
        np.testing.assert_allclose(model.embed([text], pooling="cls")[0], first, atol=1e-5)
    np.testing.assert_allclose(model.embed(MORE[::-1])[::-1], vectors, atol=1e-5)
    assert model.embed([]).shape == (0, 16)


def test_the_command_writes_vectors_of_texts_and_of_lines(sentences, tmp_path, capsys):
    (tmp_path / "lines").write_text("in the\nbeginning\n")
    cli.main(["embed", str(sentences / "run"), "in the", "beginning", "--out", str(tmp_path / "a.npz")])
    cli.main(["embed", str(sentences / "run"), str(tmp_path / "lines"), "--lines", "--out", str(tmp_path / "b.npz")])
    one, other = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert one["texts"].tolist() == other["texts"].tolist() == ["in the", "beginning"]
    np.testing.assert_array_equal(one["embeddings"], other["embeddings"])
    assert "2 x 16" in capsys.readouterr().out


def test_modules_come_back_and_are_read_again(sentences, tmp_path):
    run = LoadedRun.read(sentences / "run")
    assert (run.experiment.objective.pooling, run.experiment.objective.normalize) == ("mean", True)
    write_checked(run, tmp_path / "again")
    assert load(tmp_path / "again", "modules.json") == MODULES
    assert load(tmp_path / "again", "sentence_bert_config.json")["max_seq_length"] == 24
    folder = shutil.copytree(tmp_path / "again", tmp_path / "without")
    (folder / "jax_speechlm.json").unlink()
    assert read_folder(folder).experiment.objective == run.experiment.objective
    assert read_folder(folder).experiment.data.context == 24


def test_the_pooling_of_later_versions_is_read(sentences, tmp_path):
    folder = shutil.copytree(sentences / "theirs", tmp_path / "folder")
    write_json(folder, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": "cls"})
    write_json(folder, "modules.json", MODULES[:2])
    objective = read_folder(folder).experiment.objective
    assert (objective.pooling, objective.normalize) == ("cls", False)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("modules.json", {}, "no list of modules"),
        ("modules.json", [{"type": 3, "path": ""}], "no list of modules"),
        (
            "modules.json",
            [*MODULES, {"path": "3", "type": "x.Dense"}],
            "Pooling, Normalize, Dense: a",
        ),
        ("modules.json", [MODULES[0] | {"path": "0_Transformer"}, MODULES[1]], "in the folder itself"),
        ("modules.json", [MODULES[0], MODULES[1] | {"path": "../.."}], "leaves the folder|is missing"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling by max has no counterpart"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "pooling by mean, cls has no counterpart"),
        ("1_Pooling/config.json", {}, "pooling by nothing"),
        ("1_Pooling/config.json", [], "no JSON object"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length=-1 is not possible"),
        ("sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True}, "do_lower_case=true"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name='query'"),
    ],
)
def test_modules_without_counterpart_are_refused(sentences, tmp_path, file, value, message):
    folder = shutil.copytree(sentences / "theirs", tmp_path / "folder")
    write_json(folder, file, value)
    with pytest.raises(ExportError, match=message):
        read_folder(folder)


def test_an_encoder_saved_with_heads_for_other_uses_or_without_a_pooler_is_read(tmp_path):
    arrays = write_encoder(tmp_path / "theirs", "bert")
    run = read_folder(tmp_path / "theirs")
    for file in (tmp_path / "theirs").glob("*.safetensors*"):
        file.unlink()
    kept = {f"bert.{name}": array for name, array in arrays.items() if not name.startswith("pooler.")}
    weights.write_weights(tmp_path / "theirs", kept | {"cls.predictions.bias": np.zeros(3, np.float32)})
    other = read_folder(tmp_path / "theirs")
    assert run.experiment.objective.pooler
    assert not other.experiment.objective.pooler
    assert other.sources["transformer"].keys() == run.sources["transformer"].keys()


def test_a_masked_language_model_embeds_too(tmp_path):
    write_text_model(tmp_path / "theirs", "modernbert", **SPECIAL["modernbert"])
    import_run(tmp_path / "theirs", tmp_path / "run")
    embedder = TextEmbedder.load(tmp_path / "run")
    vectors = jax_speechlm.load(tmp_path / "run").embed(MORE)
    ids = embedder.run.tokenizer.encode(MORE[0])
    hidden = hidden_states(embedder.run, Vocabulary.of(embedder.run.tokenizer).enclose(ids))
    np.testing.assert_allclose(vectors[0], hidden.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", families.CLASSIFIERS)
def test_a_classifier_becomes_a_run_and_a_folder_again(tmp_path, kind):
    arrays = write_text_model(tmp_path / "theirs", kind, architecture=families.CLASSIFIERS[kind], **SPECIAL[kind])
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed
    run = LoadedRun.read(tmp_path / "run")
    shares = jax_speechlm.load(tmp_path / "run").classify(MORE)
    assert [set(each) for each in shares] == [{"no", "yes"}] * len(MORE)
    write_checked(run, tmp_path / "again")
    again = weights.read_weights(tmp_path / "again")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_a_classifier_that_is_started_from_an_encoder_takes_its_pooler_and_is_exported(tmp_path):
    """As transformers starts a BertForSequenceClassification from a BertModel; only its head is new."""
    write_encoder(tmp_path / "theirs", "bert")
    import_run(tmp_path / "theirs", tmp_path / "encoder")
    encoder = LoadedRun.read(tmp_path / "encoder")
    objective = Classification(classes=("a", "b", "c"), pooling="cls", pooler="tanh")
    built = objective.build(encoder.experiment.model, None, encoder.tokenizer)
    starts = (InitFrom(checkpoint=str(tmp_path / "encoder")),)
    params, messages = take_over_all(starts, functional.init(built.make, jax.random.key(0)), encoder.tokenizer)
    assert messages[-1].startswith("new: head (")
    for group in ("transformer", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, params[group], encoder.params[group])
    run = dataclasses.replace(
        encoder, experiment=encoder.experiment.replace(objective=objective), params=params, units=None
    )
    assert not write_checked(run, tmp_path / "out").failed
    assert load(tmp_path / "out", "config.json")["architectures"] == ["BertForSequenceClassification"]
    mean = dataclasses.replace(run, experiment=run.experiment.replace(objective=objective.replace(pooling="mean")))
    with pytest.raises(ExportError, match=r"has objective\.pooling=cls and objective\.pooler=tanh only"):
        package(mean)


def test_a_classifier_of_several_labels_at_once_is_refused(tmp_path):
    write_text_model(tmp_path / "theirs", "bert", architecture="BertForSequenceClassification", **SPECIAL["bert"])
    change_json(tmp_path / "theirs", "config.json", problem_type="multi_label_classification")
    with pytest.raises(ExportError, match="problem_type='multi_label_classification' has no counterpart"):
        read_folder(tmp_path / "theirs")
