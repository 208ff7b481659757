"""Folders become runs: ours as they were, others' with every id in its place; what is wrong is refused."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.hugging_face import IdMap
from jax_speechlm import cli
from jax_speechlm.cli.experiment import experiment_parser, parse_experiment
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, FailedCheck
from jax_speechlm.interop.hf import import_, mapping, weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.registry import read_model
from jax_speechlm.interop.hf.transformer import without_vocabulary_map
from jax_speechlm.interop.hf.verify import export_check, import_check
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA, merge
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.parallel.mesh import MeshShape, make_mesh, param_shardings
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.loop import load_experiment
from jax_speechlm.training.source import read_tokenizer
from jax_speechlm.training.warm_start import take_over
from tests.interop.foreign_folders import TEXTS, write_json, write_recognizer, write_text_model
from tests.interop.tiny_runs import FORMER, RUNS, tiny_run


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch):
    for module in (export_check, import_check):
        monkeypatch.setattr(module, "transformers_is_here", lambda: False)


def load(folder, name):
    return json.loads((folder / name).read_text())


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
    assert load_experiment(tmp_path / "run") == again.experiment
    kinds = {"joint": "ctc", "best_rq": "encoder"}
    assert again.experiment.objective.kind == kinds.get(run.experiment.objective.kind, run.experiment.objective.kind)
    write_checked(again, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")


def test_a_speech_language_model_says_how_it_is_asked_and_what_stands_for_speech(tmp_path):
    write_checked(tiny_run("speech_lm"), tmp_path / "out")
    (tmp_path / "out" / folders.RECORD).unlink()
    assert read_folder(tmp_path / "out").experiment.objective == SpeechLM()
    config = load(tmp_path / "out", "config.json")
    for wrong in ({"audio_token_id": None}, {"audio_token_id": 10**5}, {"audio_token_id": 30}, {"audio_config": None}):
        write_json(tmp_path / "out", "config.json", config | wrong)
        with pytest.raises(ExportError, match=r"audio_|ids that must differ|id 100000"):
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


BERT = {"bos": "[CLS]", "cls": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
SPECIAL = {
    "llama": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
    "qwen3": {"eos": "<|endoftext|>", "pad": "<|endoftext|>"},
    **dict.fromkeys(("modernbert", "bert", "roberta"), BERT),
}
TABLES = {
    "modernbert": "model.embeddings.tok_embeddings.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    "roberta": "roberta.embeddings.word_embeddings.weight",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_model_from_elsewhere_has_its_ids_where_ours_are_and_gives_the_same_numbers(tmp_path, kind):
    special = SPECIAL[kind]
    arrays = write_text_model(tmp_path / "theirs", kind, **special)
    import_run(tmp_path / "theirs", tmp_path / "run")
    run, theirs = LoadedRun.read(tmp_path / "run"), read_model(tmp_path / "theirs")
    tokenizer, vocabulary = run.tokenizer, Vocabulary.of(run.tokenizer)
    config, names = load(tmp_path / "theirs", "config.json"), dict(load(tmp_path / "theirs", "tokenizer.json"))
    ids = dict(names["model"]["vocab"]) | {token["content"]: token["id"] for token in names["added_tokens"]}
    table = arrays[TABLES.get(kind, "model.embed_tokens.weight")]
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
    _, tokenizer = import_.EXPERIMENTS["LlamaForCausalLM"](tmp_path / "theirs", read_model(tmp_path / "theirs"))
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


# The blank is last and there are specials that no text has, as in the usual recipes.
VOCAB = {"|": 0, "a": 1, "b": 2, "ö": 3, "'": 4, "[UNK]": 5, "[PAD]": 6, "<s>": 7, "</s>": 8}
CTC_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "bos": "<s>", "eos": "</s>"}


def test_a_recognizers_blank_comes_to_0_and_goes_back(tmp_path):
    arrays = write_recognizer(tmp_path / "theirs", VOCAB, **CTC_SPECIAL)
    import_run(tmp_path / "theirs", tmp_path / "run")
    run = LoadedRun.read(tmp_path / "run")
    head = run.params["head"]
    np.testing.assert_array_equal(head["bias"][0], arrays["lm_head.bias"][VOCAB["[PAD]"]])
    np.testing.assert_array_equal(head["kernel"][:, 0], arrays["lm_head.weight"][VOCAB["[PAD]"]])
    for letter in "abö'":
        (number,) = run.tokenizer.encode(letter)
        np.testing.assert_array_equal(head["kernel"][:, number], arrays["lm_head.weight"][VOCAB[letter]])
        assert run.tokenizer.pieces[number] == letter
    assert run.tokenizer.vocab_size == len(VOCAB)
    assert run.tokenizer.decode(run.tokenizer.encode("öab b'a")) == "öab b'a"
    assert run.tokenizer.unknown("a z") == ["z"]
    everything = range(run.tokenizer.vocab_size)
    assert sorted(run.tokenizer.decode(everything)) == sorted(" abö'")
    write_checked(run, tmp_path / "again")
    assert load(tmp_path / "again", "vocab.json") == VOCAB
    assert load(tmp_path / "again", "config.json")["pad_token_id"] == VOCAB["[PAD]"]
    for name, array in weights.read_weights(tmp_path / "again").items():
        np.testing.assert_array_equal(array, arrays[name])
    assert Recognizer.load(tmp_path / "run").tokenizer.fingerprint == run.tokenizer.fingerprint


def test_a_front_end_and_letters_as_transformers_5_writes_them(tmp_path):
    """Inside the processor's file; and with the space between words, and letters added later, listed as added."""
    folder = tmp_path / "theirs"
    write_recognizer(folder, VOCAB, **CTC_SPECIAL)
    alone = read_folder(folder)
    front_end = load(folder, "preprocessor_config.json")
    (folder / "preprocessor_config.json").unlink()
    write_json(folder, "processor_config.json", {"feature_extractor": front_end})
    added = {"0": {"content": "|", "special": True}, "3": {"content": "ö", "special": False}}
    contradict(folder, "tokenizer_config.json", added_tokens_decoder=added)
    found = read_folder(folder)
    assert found.experiment == alone.experiment
    assert found.tokenizer.decode(found.tokenizer.encode("öa b")) == "öa b"


def test_chat_templates_survive_import_and_export(tmp_path):
    """In files of their own, as transformers writes them today, and inside JSON; character for character."""
    texts = {
        "chat_template.jinja": "{% for m in messages %}\r\n<|im_start|>{{ m['content'] }}\u2581{% endfor %}",
        "additional_chat_templates/rag.jinja": "{{ documents }}\n\n",
        "additional_chat_templates/tool_use.jinja": "\ufeff{{ tools }}",
    }
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    contradict(tmp_path / "theirs", "tokenizer_config.json", chat_template="{{ messages }}")
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


def test_characters_with_the_blank_at_0_become_our_own(tmp_path):
    vocab = {"<pad>": 0, "|": 1, "a": 2, "b": 3}
    write_recognizer(tmp_path / "theirs", vocab, pad="<pad>")
    assert read_folder(tmp_path / "theirs").tokenizer == CharTokenizer(" ab")


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


def test_an_imported_run_has_the_config_that_every_run_has(tmp_path):
    """It is one that `--config` takes, beside sets to train on."""
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    import_run(tmp_path / "theirs", tmp_path / "run")
    assert load_experiment(tmp_path / "run") == LoadedRun.read(tmp_path / "run").experiment
    parser = experiment_parser("jax-speechlm finetune", "demo/lm")
    argv = ["--config", str(tmp_path / "run" / "config.json"), "--data.sets", "mine"]
    experiment, _ = parse_experiment(parser, argv, "jax-speechlm finetune")
    assert experiment.data.sets == ("mine",)
    assert experiment.model == LoadedRun.read(tmp_path / "run").experiment.model


def test_another_run_starts_from_an_imported_one(tmp_path):
    arrays = write_recognizer(tmp_path / "theirs", VOCAB, **CTC_SPECIAL)
    import_run(tmp_path / "theirs", tmp_path / "run")
    fresh = tiny_run("ctc")
    params = jax.tree.map(jnp.asarray, fresh.params)
    start = InitFrom(checkpoint=str(tmp_path / "run"))
    found = take_over(start, params, fresh.tokenizer, {"units": None})
    name = "wav2vec2_bert.feature_projection.projection.weight"
    np.testing.assert_array_equal(found["encoder"]["input"]["kernel"], arrays[name].T)
    np.testing.assert_array_equal(found["head"]["bias"], params["head"]["bias"])
    assert read_tokenizer(str(tmp_path / "run")).fingerprint == LoadedRun.read(tmp_path / "run").tokenizer.fingerprint


@given(
    num_rows=st.integers(5, 40), order=st.permutations(range(5)), named=st.integers(5, 40),
    has=st.tuples(st.booleans(), st.booleans(), st.booleans()), is_text=st.booleans(),
)  # fmt: skip
def test_no_row_is_lost_or_doubled(num_rows, order, named, has, is_text):
    has_padding, has_mask, has_begin = has
    padding, end, mask, begin, _ = order
    places = IdMap(
        num_rows,
        padding if has_padding or not is_text else None,
        end if is_text else None,
        mask if has_mask and is_text else None,
        begin if has_begin and is_text else None,
        tuple(range(named, num_rows)),
    )
    there = places.theirs[places.theirs >= 0]
    assert sorted(there) == list(range(num_rows))
    assert [places.theirs[number] for number in places.ours] == list(range(num_rows))
    vocabulary = Vocabulary(places.tokenizer_size)
    if has_padding or not is_text:
        assert places.theirs[0] == padding
    if is_text:
        assert places.theirs[vocabulary.boundary] == end
        if has_mask:
            assert places.theirs[vocabulary.mask] == mask
        rows = places.rows(vocabulary.size)
        assert len(rows) == vocabulary.size
        if named + 2 <= num_rows:
            assert len(there) == len(places.theirs)  # rows without a name served, none was made
    else:
        assert len(places.theirs) == num_rows


def contradict(folder, file, **changes):
    write_json(folder, file, load(folder, file) | changes)


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
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}, "has no counterpart here"),
        ("config.json", {"architectures": None}, "does not name one class"),
        ("config.json", {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(tmp_path, capsys, file, changes, message):
    write_text_model(tmp_path / "theirs", "llama", **SPECIAL["llama"])
    contradict(tmp_path / "theirs", file, **changes)
    assert cli.main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "run")]) == USER_ERROR
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_recognizer_without_a_blank_is_refused(tmp_path):
    write_recognizer(tmp_path / "theirs", VOCAB, **CTC_SPECIAL)
    contradict(tmp_path / "theirs", "config.json", pad_token_id=0)
    with pytest.raises(ExportError, match=r"pad_token_id of config.json is \[0\], and .* which is 6"):
        read_folder(tmp_path / "theirs")
    contradict(tmp_path / "theirs", "config.json", pad_token_id=None)
    contradict(tmp_path / "theirs", "tokenizer_config.json", pad_token=None)
    with pytest.raises(ExportError, match="which is the CTC blank"):
        read_folder(tmp_path / "theirs")


def test_links_out_of_the_folder_and_pickles_are_refused(tmp_path):
    folder = tmp_path / "theirs"
    write_recognizer(folder, VOCAB, **CTC_SPECIAL)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="a link that leaves the folder"):
        read_folder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ExportError, match=r"pytorch_model.bin is a pickle, which could run any code"):
        read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ExportError, match=r"config.json is missing"):
        read_folder(folder)


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


def test_a_text_classifier_by_its_first_token_is_refused(tmp_path):
    write_checked(tiny_run("text classification"), tmp_path / "out")
    config = load(tmp_path / "out", "config.json")
    write_json(tmp_path / "out", "config.json", config | {"classifier_pooling": "cls"})
    with pytest.raises(ExportError, match=r"classifier_pooling='cls': here it is the mean of all tokens"):
        read_folder(tmp_path / "out")


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


@pytest.mark.parametrize("kind", ["modernbert", "bert", "llama"])
def test_a_host_reads_what_its_devices_hold_and_no_more(tmp_path, monkeypatch, kind):
    """Of 8 devices along fsdp, a host with two reads a quarter of what is spread, and all of what is not."""
    write_text_model(tmp_path / "theirs", kind, **SPECIAL[kind])
    imported = read_folder(tmp_path / "theirs")
    sources = jax.tree.leaves(imported.sources)
    assert all(layer.base is not None for source in sources for layer in source.layers)  # views: nothing was read
    reads, read = [], mapping.TensorSource.read

    def counted(source, *args):
        reads.append(read(source, *args))
        return reads[-1]

    monkeypatch.setattr(mapping.TensorSource, "read", counted)
    mesh = make_mesh(MeshShape(fsdp=8))
    params = jax.tree.leaves(imported.place(mesh))
    whole = sum(leaf.nbytes for leaf in params)
    shares = [leaf.addressable_shards[0].data.nbytes for leaf in params]
    assert sum(part.nbytes for part in reads) == whole  # all eight devices are this host's: each byte once
    assert max(part.nbytes for part in reads) == max(shares)  # and never more at a time than a device's share
    assert sum(shares) < whole / 4

    reads.clear()
    shardings = param_shardings(mesh, imported.declaration.axes, imported.declaration.shapes)
    for source, sharding in zip(sources, jax.tree.leaves(shardings), strict=True):
        places = sharding.devices_indices_map(source.shape)
        for index in {str(places[device]): places[device] for device in mesh.devices.flat[:2]}.values():
            source.read(index, np.float32)
    expected = [share if share == leaf.nbytes else 2 * share for share, leaf in zip(shares, params, strict=True)]
    assert sum(part.nbytes for part in reads) == sum(expected) < whole / 2


@given(st.data())
@settings(max_examples=30)
def test_any_part_of_a_source_is_that_part_of_the_whole(data):
    rng = np.random.default_rng(0)
    ids = data.draw(st.none() | st.lists(st.integers(-1, 5), min_size=1, max_size=9).map(np.array))
    axis, stacked = data.draw(st.integers(0, 1)), data.draw(st.booleans())
    layers = tuple(rng.normal(size=(6, 6)) for _ in range(3 if stacked else 1))
    source = mapping.TensorSource(layers, stacked, ids, axis)
    whole = source.read()
    assert whole.shape == source.shape
    parts = [layer if ids is None else np.take(np.insert(layer, 6, 0, axis), ids, axis) for layer in layers]
    np.testing.assert_array_equal(whole, np.stack(parts) if stacked else parts[0])
    index = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in source.shape)
    if all(part.stop > part.start for part in index):
        np.testing.assert_array_equal(source.read(index), whole[index])
