"""Language models of other writers become runs: every id has the right row, and logits are the same."""

import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import import_, weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.registry import read_model
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.nn import functional
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.runs import LoadedRun
from tests.cli.test_kinds import parse
from tests.interop.foreign_folders import SPECIAL, TABLES, TEXTS, change_json, load, write_json, write_text_model


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_model_from_elsewhere_has_its_ids_where_ours_are_and_gives_the_same_numbers(tmp_path, kind):
    special = SPECIAL[kind]
    arrays = write_text_model(tmp_path / "theirs", kind, **special)
    import_run(tmp_path / "theirs", tmp_path / "run")
    run, theirs = LoadedRun.read(tmp_path / "run"), read_model(tmp_path / "theirs")
    tokenizer, vocabulary = run.tokenizer, Vocabulary.of(run.tokenizer)
    config, names = load(tmp_path / "theirs", "config.json"), dict(load(tmp_path / "theirs", "tokenizer.json"))
    ids = dict(names["model"]["vocab"]) | {token["content"]: token["id"] for token in names["added_tokens"]}
    table = arrays[TABLES.get(kind, "transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight")]
    ours = np.asarray(run.params["transformer"]["embedding"])

    # what a text is, id for id, by the table's rows
    for text in TEXTS:
        expected = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
        found = tokenizer.encode(text)
        np.testing.assert_array_equal(ours[found], table[expected])
        assert tokenizer.decode(found) == text
    # and what stands around it
    np.testing.assert_array_equal(ours[vocabulary.boundary], table[ids[special["eos"]]])
    np.testing.assert_array_equal(ours[vocabulary.begin], table[ids[special.get("bos", special["eos"])]])
    if kind in TABLES:
        np.testing.assert_array_equal(ours[0], table[ids["[PAD]"]])
        np.testing.assert_array_equal(ours[vocabulary.mask], table[ids["[MASK]"]])

    # the same numbers for the same tokens
    rows = [vocabulary.enclose(tokenizer.encode(text)) for text in TEXTS[:2]]
    place = tokenizer.places.theirs
    for row in rows:
        one, other = logits(run, np.array(row)), logits_of(theirs, len(table), place[np.array(row)])
        known = place >= 0
        np.testing.assert_allclose(one[:, : len(place)][:, known], other[:, place[known]], atol=1e-5)

    write_checked(run, tmp_path / "again")
    for name, value in config.items():
        if name.endswith("_token_id") or name == "vocab_size":
            assert load(tmp_path / "again", "config.json")[name] == value
    assert load(tmp_path / "again", "tokenizer.json") == names
    for name, array in weights.read_weights(tmp_path / "again").items():
        np.testing.assert_array_equal(array, arrays[name])


def logits(run, row):
    return logits_by(run.experiment.model, Vocabulary.of(run.tokenizer).size, run.params["transformer"], row)


def logits_of(model, size, row):
    return logits_by(model.config, size, model.params["transformer"], row)


def logits_by(config, size, params, row):
    graphdef = functional.declare(lambda rngs: Transformer(config, size, rngs=rngs)).graphdef

    @jax.jit
    def run(params, tokens):
        module, place = functional.bind(graphdef, params), jnp.arange(tokens.shape[1])[None]
        return module.logits(module(tokens, jnp.ones_like(tokens), place))[0]

    return np.asarray(run(params, jnp.asarray(row[None], jnp.int32)))


def test_what_looks_like_a_special_token_in_a_text_is_text(tmp_path):
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    _, tokenizer = import_.EXPERIMENTS["LlamaForCausalLM"](read_model(tmp_path / "theirs"))
    text = "a<|end_of_text|>b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode(text)) < tokenizer.vocab_size
    assert tokenizer.begin not in tokenizer.encode("<|begin_of_text|>")
    assert " " not in "".join(tokenizer.pieces)
    assert "\u2581the" in tokenizer.pieces


def test_an_imported_language_model_generates_and_scores(tmp_path):
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    import_run(tmp_path / "theirs", tmp_path / "run")
    lm = LanguageModel.load(tmp_path / "run")
    assert lm.encode("the")[0] == lm.vocabulary.begin != lm.vocabulary.boundary
    assert lm.context == 64
    assert lm.score(["the cat"])[0] < 0
    (continuation,), *_ = lm.generate(["the cat"], max_tokens=5)
    assert continuation.num_tokens <= 5


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("kind", "architecture"), [("bert", "BertModel"), ("gpt2", "GPT2LMHeadModel")])
def test_half_precision_in_several_files_is_read_without_loss(tmp_path, kind, architecture, dtype):
    arrays = write_text_model(tmp_path / "theirs", kind, architecture=architecture, **SPECIAL[kind])
    for file in (tmp_path / "theirs").glob("*.safetensors*"):
        file.unlink()
    halves = {name: array.astype(dtype) for name, array in arrays.items()}
    if kind == "gpt2":  # as the hub has it: the causal mask, and no prefix
        halves = {name.removeprefix("transformer."): array for name, array in halves.items()}
        halves["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.bool_)
    weights.write_weights(tmp_path / "theirs", halves, shard_bytes=3_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed
    write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again")
    for name, array in weights.read_weights(tmp_path / "again").items():
        np.testing.assert_array_equal(array, arrays[name].astype(dtype).astype(np.float32))


def test_an_untied_gpt2_keeps_its_own_vocabulary_map(tmp_path):
    arrays = dict(write_text_model(tmp_path / "theirs", "gpt2", **SPECIAL["gpt2"]))
    for file in (tmp_path / "theirs").glob("*.safetensors*"):
        file.unlink()
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"][::-1].copy()
    weights.write_weights(tmp_path / "theirs", arrays)
    with pytest.raises(ExportError, match="set tie_word_embeddings to false"):
        read_folder(tmp_path / "theirs")
    change_json(tmp_path / "theirs", "config.json", tie_word_embeddings=False)
    import_run(tmp_path / "theirs", tmp_path / "run")
    write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again")
    again = weights.read_weights(tmp_path / "again")
    assert again.keys() == arrays.keys()
    np.testing.assert_array_equal(again["lm_head.weight"], arrays["lm_head.weight"])


def test_chat_templates_survive_import_and_export(tmp_path):
    """In files of their own, as transformers writes them today, and inside JSON; character for character."""
    texts = {
        "chat_template.jinja": "{% for m in messages %}\r\n<|im_start|>{{ m['content'] }}\u2581{% endfor %}",
        "additional_chat_templates/rag.jinja": "{{ documents }}\n\n",
        "additional_chat_templates/tool_use.jinja": "\ufeff{{ tools }}",
    }
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    change_json(tmp_path / "theirs", "tokenizer_config.json", chat_template="{{ messages }}")
    (tmp_path / "theirs" / "additional_chat_templates").mkdir()
    for name, text in texts.items():
        (tmp_path / "theirs" / name).write_bytes(text.encode())
    write_json(tmp_path / "theirs", "chat_template.json", {"chat_template": "{{ prompt }}"})
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed
    assert not write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again").failed
    assert not import_run(tmp_path / "again", tmp_path / "second").failed  # from an export, too
    write_checked(LoadedRun.read(tmp_path / "second"), tmp_path / "third")
    for folder in ("again", "third"):
        for name, text in texts.items():
            assert (tmp_path / folder / name).read_bytes() == text.encode()
        assert load(tmp_path / folder, "chat_template.json") == {"chat_template": "{{ prompt }}"}
        assert load(tmp_path / folder, "tokenizer_config.json")["chat_template"] == "{{ messages }}"
    (tmp_path / "theirs" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ExportError, match=r"chat_template\.jinja is not text in UTF-8"):
        read_folder(tmp_path / "theirs")


def test_an_imported_run_has_the_config_that_every_run_has(tmp_path):
    """It is one that `--config` takes, beside sets to train on."""
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    import_run(tmp_path / "theirs", tmp_path / "run")
    assert Experiment.read(tmp_path / "run" / "config.json") == LoadedRun.read(tmp_path / "run").experiment
    experiment = parse("--config", str(tmp_path / "run" / "config.json"), "--data.sets", "mine")
    assert experiment.data.sets == ("mine",)
    assert experiment.model == LoadedRun.read(tmp_path / "run").experiment.model


def test_a_bert_as_it_was_first_released_is_read_too(tmp_path):
    """Norms are called gamma and beta, and there are a pooler and a head for pairs of sentences."""
    arrays = write_text_model(tmp_path / "theirs", "bert", **SPECIAL["bert"])
    old = {}
    for name, array in arrays.items():
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        old[name] = array
    extra = np.ones((16, 16), np.float32)
    old |= {"bert.pooler.dense.weight": extra, "cls.seq_relationship.bias": extra[:2, 0]}
    shutil.copytree(tmp_path / "theirs", tmp_path / "old")
    for file in (tmp_path / "old").glob("*.safetensors*"):
        file.unlink()
    weights.write_weights(tmp_path / "old", old)
    assert not import_run(tmp_path / "old", tmp_path / "run").failed
    params = LoadedRun.read(tmp_path / "run").params
    import_run(tmp_path / "theirs", tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, params, LoadedRun.read(tmp_path / "again").params)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"eos_token_id": 3}, r"eos_token_id of config.json is \[3\]"),
        ("config.json", {"bos_token_id": 3}, r"bos_token_id of config.json is \[3\]"),
        ("config.json", {"vocab_size": 8}, "vocab_size is 8"),
        ("tokenizer_config.json", {"eos_token": "<no>"}, "which the tokenizer has not"),
        ("config.json", {"eos_token_id": -1}, "not possible"),
        ("config.json", {"hidden_size": 10**9}, "hidden_size=1000000000 is not possible"),
        ("config.json", {"num_hidden_layers": "2"}, "num_hidden_layers=2 is not possible"),
        ("config.json", {"num_hidden_layers": True}, "num_hidden_layers=True is not possible"),
        ("config.json", {"num_hidden_layers": 3}, "has no 'model.layers.2"),
        ("config.json", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is not possible"),
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map names code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "evil.T"}}, "auto_map names code"),
        ("config.json", {"architectures": ["T5ForConditionalGeneration"]}, "has no counterpart here"),
        ("config.json", {"architectures": None}, "does not name one class"),
        ("config.json", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope' has no counterpart"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(tmp_path, capsys, file, changes, message):
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    change_json(tmp_path / "theirs", file, **changes)
    assert cli.main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "run")]) == USER_ERROR
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
