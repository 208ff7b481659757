"""What stands around a text of a model from elsewhere, and what ends one: as its own tokenizer and files have it."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer, IdMap
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import GREEDY, Beam
from jax_speechlm.evaluation.language import predict
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.ensemble import LanguageEnsemble
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import registry
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.verify import check as folder_check
from jax_speechlm.interop.hf.verify import verdict
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import write_json, write_text_model
from tests.interop.tiny_runs import tiny_run

TEXT, PROMPT = "the cat sat on the mat", "the cat"
START, END = "<|start|>", "<|end|>"


def change(folder, file, **changes):
    values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    write_json(folder, file, {name: value for name, value in (values | changes).items() if value != "gone"})


def write_qwen(folder, **special):
    """A model whose config.json names a bos that its tokenizer knows nothing of."""
    write_text_model(folder, "qwen3", encloses=False, bos=START, eos=END, pad=END, **special)
    change(folder, "tokenizer_config.json", bos_token="gone")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    write_qwen(folder / "theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_check, "transformers_is_installed", lambda: False)
        import_run(folder / "theirs", folder / "run")
    return folder


def ids_of(folder, text: str) -> list[int]:
    """The ids of a text by the tokenizer itself, with all that it adds, as ours are numbered."""
    tokenizer = LoadedRun.read(folder / "run").tokenizer
    return tokenizer.places.ours[tokenizer._tokenizer.encode(text, add_special_tokens=True).ids].tolist()


def test_prefix_of_prompts_is_nothing_where_the_tokenizer_adds_nothing(qwen):
    lm = LanguageModel.load(qwen / "run")
    ids = ids_of(qwen, PROMPT)
    assert lm.prompt(PROMPT) == ids
    assert lm.encode(PROMPT) == [*ids, lm.vocabulary.boundary]
    (found,), *_ = lm.generate([PROMPT], GREEDY, max_tokens=6)
    (expected,) = lm.continue_ids([ids], GREEDY, max_tokens=6)
    np.testing.assert_allclose(found.log_prob, expected.log_prob[0], rtol=1e-6)
    with_begin = lm.continue_ids([[lm.vocabulary.begin, *ids]], GREEDY, max_tokens=6)[0]
    assert found.text == lm.tokenizer.decode(expected.tokens[0][: expected.length[0] - found.ended])
    assert found.log_prob != pytest.approx(float(with_begin.log_prob[0]), abs=1e-3)
    assert lm.generate([""], GREEDY, max_tokens=3)[0][0].num_tokens >= 1  # an empty one begins behind the boundary


def test_prefix_of_a_scored_text_is_nothing_and_its_first_token_counts(qwen):
    lm = LanguageModel.load(qwen / "run")
    ids = lm.encode(TEXT)
    (rest,) = lm.token_nll([ids])
    (first,) = lm.token_nll([[lm.vocabulary.begin, ids[0]]])
    assert len(rest) == len(ids) - 1
    np.testing.assert_allclose(lm.score([TEXT]), [-(first.sum() + rest.sum())], rtol=1e-6)
    (found,) = predict(lm, [TEXT])
    assert found.units == len(ids)
    np.testing.assert_allclose(found.nats, -lm.score([TEXT])[0], rtol=1e-6)
    np.testing.assert_allclose(LanguageEnsemble([lm, lm]).score([TEXT, ""]), lm.score([TEXT, ""]), rtol=1e-5)


def test_prefix_of_a_speech_prompt_is_what_the_tokenizer_adds(qwen):
    tokenizer = LoadedRun.read(qwen / "run").tokenizer
    objective = SpeechLM()
    before = objective.prompts.of(objective.task).before
    assert objective.prompt_ids(tokenizer)[0].tolist() == tokenizer.encode(before)


def test_prefix_that_the_tokenizer_adds_stands_before_prompts_and_texts(tmp_path):
    write_text_model(tmp_path / "theirs", "llama", bos=START, eos=END)
    import_run(tmp_path / "theirs", tmp_path / "run")
    lm = LanguageModel.load(tmp_path / "run")
    assert lm.prompt(PROMPT) == ids_of(tmp_path, PROMPT)
    assert lm.prompt(PROMPT)[0] == lm.vocabulary.begin != lm.vocabulary.boundary
    assert lm.encode(TEXT) == [*ids_of(tmp_path, TEXT), lm.vocabulary.boundary]
    assert lm.prompt("") == [lm.vocabulary.begin]


def test_prefix_of_several_tokens_is_refused(tmp_path):
    write_text_model(tmp_path / "theirs", "llama", bos=START, eos=END)
    description = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text())
    description["post_processor"]["single"].insert(0, description["post_processor"]["single"][0])
    write_json(tmp_path / "theirs", "tokenizer.json", description)
    with pytest.raises(ExportError, match="puts 2 tokens before a text"):
        read_folder(tmp_path / "theirs")


def test_prefix_and_ordinary_tokens_a_default_makes_none_special(tmp_path):
    """1 and 2 are LlamaConfig's bos and eos, and 0 may be anyone's padding; here they are three letters of bytes."""
    folder = tmp_path / "theirs"
    write_text_model(folder, "llama", encloses=False, eos=END)
    before = read_folder(folder).tokenizer
    change(folder, "config.json", bos_token_id=1, pad_token_id=0, eos_token_id=[2, before.places.end])
    write_json(folder, "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [2]})
    tokenizer = read_folder(folder).tokenizer
    assert tokenizer.places == before.places
    assert tokenizer.begin is None
    assert not tokenizer.has_prefix
    assert tokenizer.other_ends == ()
    text = '!"#$' * 3
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert Vocabulary.of(tokenizer).may_follow()[tokenizer.encode(text)].all()


def test_an_ordinary_token_as_the_only_end_is_refused(tmp_path):
    folder = tmp_path / "theirs"
    write_text_model(folder, "llama", encloses=False, eos=END)
    change(folder, "config.json", eos_token_id=2)
    change(folder, "tokenizer_config.json", eos_token=None)
    with pytest.raises(ExportError, match=r"id ends a text \(eos_token_id of config.json is \[2\]: '#', ordinary"):
        read_folder(folder)
    write_json(folder, "special_tokens_map.json", {"eos_token": {"content": END}})
    change(folder, "tokenizer_config.json", eos_token="gone")
    change(folder, "config.json", eos_token_id=None)
    assert read_folder(folder).tokenizer.places.end == max(
        token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    )


def greedy(lm, method=GREEDY, most=8):
    (found,) = lm.continue_ids([lm.prompt(PROMPT)], method, max_tokens=most)
    return found.tokens[0][: found.length[0]].tolist()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_several_eos_ids_of_a_folder_end_what_is_generated(qwen, tmp_path, file):
    """As Qwen3 has it: one of them is the padding, too."""
    folder, lm = tmp_path / "theirs", LanguageModel.load(qwen / "run")
    ids = greedy(lm)
    stop = int(lm.tokenizer.places.theirs[ids[0]])
    assert len(ids) == 8
    assert stop != lm.tokenizer.places.end
    write_qwen(folder)
    end, added = lm.tokenizer.places.end, {}
    if file == "config.json":  # where a token has to be an added one
        description = json.loads((folder / "tokenizer.json").read_text())
        name = next(name for name, number in description["model"]["vocab"].items() if number == stop)
        added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        description["added_tokens"].insert(0, {"id": stop, "content": name} | added)
        write_json(folder, "tokenizer.json", description)
    change(folder, file, eos_token_id=[end, stop])
    import_run(folder, tmp_path / "run")
    several = LanguageModel.load(tmp_path / "run")
    assert several.vocabulary.ends == (several.vocabulary.boundary, ids[0])
    assert greedy(several) == ids[:1]
    (found,), *_ = several.generate([PROMPT], GREEDY, max_tokens=8)
    assert (found.ended, found.num_tokens, found.text) == (True, 1, "")
    for each in several.generate([PROMPT], Beam(size=3), max_tokens=8)[0]:
        assert each.ended or each.num_tokens == 8
    write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again")
    assert json.loads((tmp_path / "again" / file).read_text())["eos_token_id"] == [end, stop]


def test_several_eos_ids_may_hold_the_padding_and_are_written_for_a_speech_model(tmp_path):
    folder = tmp_path / "theirs"
    write_text_model(folder, "qwen3", encloses=False, eos=END, pad="<|pad|>")
    one = read_folder(folder).tokenizer
    assert one.places.padding is not None
    write_json(folder, "generation_config.json", {"eos_token_id": [one.places.end, one.places.padding, 10**6]})
    tokenizer = read_folder(folder).tokenizer
    assert tokenizer.places.padding is None
    assert tokenizer.places.other_ends == (one.places.padding,)
    assert 0 not in tokenizer.other_ends
    assert Vocabulary.of(tokenizer).may_follow()[list(Vocabulary.of(tokenizer).ends)].all()
    experiment = tiny_run("speech_lm").experiment
    _, files = registry.settings(experiment, tokenizer)
    assert files[registry.GENERATION]["eos_token_id"] == [one.places.end, one.places.padding]


def test_several_eos_ids_of_a_damaged_file_are_refused(tmp_path):
    write_text_model(tmp_path / "theirs", "llama", bos=START, eos=END)
    for wrong in ("2", [1, None], True, {"a": 1}):
        write_json(tmp_path / "theirs", "generation_config.json", {"eos_token_id": wrong})
        with pytest.raises(ExportError, match=r"generation_config.json: eos_token_id is not possible"):
            read_folder(tmp_path / "theirs")


def test_prefix_of_runs_of_before_stays_as_they_were_trained():
    """Their tokenizer's file says neither of a prefix nor of other ends, and keeps its fingerprint."""
    old = {"num_rows": 13, "padding": 11, "end": 12, "mask": None, "begin": 10, "spare": []}
    places = IdMap.from_json(old)
    assert places == IdMap(13, 11, 12, None, 10)
    assert places.has_prefix
    assert json.loads(json.dumps(places.to_json())) == old
    bare = dataclasses.replace(places, has_prefix=False, other_ends=(3,))
    assert IdMap.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_rust_panics_of_a_folder_are_errors_of_the_import(tmp_path, monkeypatch):
    """Whatever reads a text: the run does not appear, and the message names the tokenizer."""
    write_text_model(tmp_path / "theirs", "llama", bos=START, eos=END)
    description = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text())
    stuck = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"}
    write_json(tmp_path / "theirs", "tokenizer.json", description | {"normalizer": stuck})
    tokenizer = read_folder(tmp_path / "theirs").tokenizer
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    check = verdict.guarded("ids", lambda: tokenizer._tokenizer.encode("a" * 40 + "b"))
    assert not check.passed
    assert "retry-limit" in check.result
