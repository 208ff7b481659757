"""Evaluation of text models, from a checkpoint and a prepared set to a report."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.tokenizers import base
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.decoding.lm.generate import Beam
from jax_speechlm.evaluation import language, masked_text
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.recipes.experiment import Experiment, Text
from tests.data_pipelines.text_sets import write_text_set
from tests.evaluation.runs import save_run

MODEL = TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16)
TRAIN = ["the cat sat on the mat", "a dog sat on a log", "the dog and the cat ate", "no"]
TEST = ["the cat ate the dog", "a mat\nand a log", "sat é on", "d" * 60]
TOKENIZER = base.train_tokenizer([*TRAIN, "\n"], "char")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_text_set(folder / "data" / "pets", {"train": TRAIN, "test": TEST}, source=["a", "b", "a", "b"])
    data = Text(sets=("pets",), data_dir=str(folder / "data"), context=32, tokens_per_batch=64)
    for kind, model in ((CausalLM(), MODEL), (SpanCorruption(), MODEL), (MaskedLM(), MODEL.replace(causal=False))):
        save_run(folder / kind.kind, Experiment(data=data, objective=kind, model=model), TOKENIZER)
    return folder


def evaluate(work: Path, kind: str, *options: str) -> dict:
    out = work / f"report-{kind}"
    options = ["--sets", "pets", f"--data-dir={work / 'data'}", f"--out={out}", *options]
    assert cli.main(["eval", str(work / kind), *options]) == 0
    return json.loads((out / "report.json").read_text())


def test_bits_per_byte_are_those_of_every_token_over_every_byte(work, capsys):
    report = evaluate(work, "causal_lm", "--stride=8")
    lm = LanguageModel.load(work / "causal_lm")
    nats = sum(each.sum(dtype=np.float64) for each in lm.token_nll([lm.encode(text) for text in TEST], stride=8))
    num_bytes = sum(len(text.encode()) for text in TEST)
    assert report["total"]["nats"] == pytest.approx(nats, rel=1e-6)
    assert report["total"]["bytes"] == num_bytes
    # é is read as its letter, which TRAIN has, and its accent, which nothing has
    assert report["total"]["units"] == sum(len(text) + 1 for text in TEST)
    assert report["total"]["unknown"] == 1
    assert report["total"]["words"] == 5 + 5 + 3 + 1
    total = language.Prediction.model_validate(report["total"])
    assert total.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes)
    assert total.perplexity == pytest.approx(math.exp(nats / total.units))
    assert set(report["sources"]) == {"pets a", "pets b"}
    assert sum(each["nats"] for each in report["sources"].values()) == pytest.approx(nats)
    assert (report["context"], report["stride"]) == (32, 8)
    shown = capsys.readouterr().out
    assert f"{total.bits_per_byte:.4f}" in shown
    assert "1 of 4 texts lose characters" in shown


def test_an_ngram_is_measured_on_the_same_bytes(work):
    pytest.importorskip("kenlm")
    arpa = work / "uniform.arpa"
    units = ["<unk>", "<s>", "</s>", "\u2581", *sorted(set("".join(TRAIN)) - {" "})]
    log10 = -math.log10(len(units) - 1)
    lines = "\n".join(f"{-99 if unit == '<s>' else log10:.6f}\t{unit}\t0" for unit in units)
    head = f"\\data\\\nngram 1={len(units)}\nngram 2=1\n"
    arpa.write_text(f"{head}\n\\1-grams:\n{lines}\n\n\\2-grams:\n{log10:.6f}\t<s> a\n\n\\end\\\n")
    report = evaluate(work, "causal_lm", f"--ngram={arpa}")
    (found,) = (language.Prediction.model_validate(each) for each in report["ngrams"].values())
    # One choice of all units but <s> for each character and each line's end; the line break is that end.
    count = sum(len(text) + 1 for text in TEST)
    assert found.units == count
    assert found.bytes == report["total"]["bytes"]
    assert found.nats == pytest.approx(count * math.log(len(units) - 1), rel=1e-5)
    assert found.unknown == 1


def test_masked_accuracy_stands_beside_that_of_frequencies(work, capsys):
    report = evaluate(work, "masked_lm")
    count = np.bincount([i for text in TRAIN for i in TOKENIZER.encode(text)], minlength=TOKENIZER.vocab_size) + 1
    best = int(count[1:].argmax()) + 1
    test = [i for text in TEST for i in TOKENIZER.encode(text)]
    share = count[1:] / count[1:].sum()
    assert report["unigram_accuracy"] == pytest.approx(np.mean(np.array(test) == best))
    assert report["unigram_loss"] == pytest.approx(-np.mean(np.log(share[np.array(test) - 1])))
    assert 0.1 * len(test) < report["tokens"] < 0.2 * len(test)
    assert report["accuracy"] * report["tokens"] == pytest.approx(round(report["accuracy"] * report["tokens"]))
    assert report == evaluate(work, "masked_lm")
    assert "token frequencies" in capsys.readouterr().out


def test_frequencies_of_the_training_text_are_the_baseline():
    accuracy, loss = masked_text.unigram(np.array([0, 5, 2, 0]), np.array([0, 1, 3, 1]))
    assert accuracy == pytest.approx(1 / 5)
    expected = -(math.log(6 / 10) + 3 * math.log(3 / 10) + math.log(1 / 10)) / 5
    assert loss == pytest.approx(expected)


def test_a_run_without_a_measure_says_so(work, capsys):
    assert cli.main(["eval", str(work / "span_corruption"), "--sets", "pets"]) == USER_ERROR
    assert "trained by span_corruption" in capsys.readouterr().err
    with pytest.raises(Exception, match="trained by masked_lm, which cannot score text"):
        LanguageModel.load(work / "masked_lm")


def test_generate_prints_what_the_model_continues(work, capsys):
    run = [str(work / "causal_lm"), "the ", "a", "--max-tokens=5"]
    assert cli.main(["generate", *run, "--beam-size=2", "--format=json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = LanguageModel.load(work / "causal_lm").generate(["the ", "a"], Beam(size=2), max_tokens=5)
    assert [line["text"] for line in lines] == [each.text for row in found for each in row]
    assert [line["prompt"] for line in lines] == ["the ", "the ", "a", "a"]
    assert cli.main(["generate", *run, "--temperature=0", "--samples=1"]) == 0
    assert capsys.readouterr().out.startswith("the ")
    assert cli.main(["generate", str(work / "causal_lm"), "the " * 20]) == USER_ERROR
    assert "Shorten the prompt" in capsys.readouterr().err
