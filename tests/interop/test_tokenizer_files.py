"""Tokenizers' files against what Hugging Face's library made of them when `golden/make_tokenizers.py` ran."""

import json
from pathlib import Path

import pytest

from data_pipelines.tokenizers.base import CharTokenizer, load_tokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.tokenizer_files import ctc_files, text_files
from jax_speechlm.training.runs import unpack_files

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['name']}-{case['with_lines']}")
def test_ids_are_those_of_hugging_faces_library(tmp_path, case):
    unpack_files(case["saved"], tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    files = text_files(tokenizer, Vocabulary.of(tokenizer, num_units=2), 64, causal=True)
    assert json.loads(json.dumps(files)) == case["files"]
    assert json.loads(json.dumps(ctc_files(tokenizer))) == case["ctc"]
    for text, ids, decoded in zip(GOLDEN["texts"], case["ids"], case["decoded"], strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == decoded


def test_every_id_has_its_name():
    tokenizer = CharTokenizer("ab \n")
    model = text_files(tokenizer, Vocabulary.of(tokenizer, 2, 3), 64, causal=True)["tokenizer.json"]["model"]
    names = ["<pad>", "a", "b", " ", "\n", "<|endoftext|>", "<mask>", "<extra_id_0>", "<extra_id_1>", "<speech>"]
    names += ["<text>", "<unit_0>", "<unit_1>", "<unit_2>"]
    assert model["vocab"] == {name: number for number, name in enumerate(names)}
    assert model["merges"] == []


def test_a_model_that_looks_both_ways_encloses_its_texts():
    tokenizer = CharTokenizer("ab")
    files = text_files(tokenizer, Vocabulary.of(tokenizer), 64, causal=False)
    single = files["tokenizer.json"]["post_processor"]["single"]
    assert [next(iter(part)) for part in single] == ["SpecialToken", "Sequence", "SpecialToken"]
    assert files["tokenizer_config.json"]["cls_token"] == files["tokenizer_config.json"]["bos_token"]


@pytest.mark.parametrize(
    ("alphabet", "kind"),
    [("ab ", "Wav2Vec2CTCTokenizer"), ("ab| ", "ParakeetTokenizer"), ("ẹe\u0301é ", "ParakeetTokenizer")],
)
def test_characters_that_ctcs_own_class_cannot_spell_take_the_other(alphabet, kind):
    assert ctc_files(CharTokenizer(alphabet))["tokenizer_config.json"]["tokenizer_class"] == kind


def test_characters_that_join_by_threes_are_refused():
    with pytest.raises(ExportError, match="join in a way"):
        ctc_files(CharTokenizer("\u1100\u1161\u11a8\u0301\u0323\u0327"))
