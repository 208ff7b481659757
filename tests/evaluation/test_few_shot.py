"""Few-shot evaluation: candidates by probabilities computed token by token, and the questions' files."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers import base
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.few_shot import Example, evaluate, read_examples
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.recipes.experiment import Experiment, Text
from tests.evaluation.runs import save_run

MODEL = TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16)
TOKENIZER = base.train_tokenizer(["abcdegnorst \n"], "char")
TRAIN = [Example("sea", "dog"), Example("tree", "cat"), Example("star", "cat"), Example("rose", "goat")]
TEST = [Example("toad", "cat"), Example("goose", "dog"), Example("cent", "goat", ("goat", "dog")), Example("do", "cat")]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few_shot")
    data = Text(sets=("pets",), context=64, tokens_per_batch=64)
    save_run(folder / "lm", Experiment(data=data, objective=CausalLM(), model=MODEL), TOKENIZER)
    for name, examples in (("train", TRAIN), ("test", TEST)):
        lines = (dict(zip(("question", "answer", "choices"), each, strict=True)) for each in examples)
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def log_prob(lm: LanguageModel, prompt: str, answer: str) -> float:
    """The probability of an answer after a prompt, from a search's steps through a cache of keys and values."""
    state = lm.session(slots=1, length=64, width=1)
    row, total = state.start(0), 0.0
    for place, token in enumerate(lm.tokenizer.encode(prompt + answer)):
        total += float(row[token]) if place >= len(prompt) else 0.0  # characters are tokens
        row = state.extend([0], [token], [0])[0]
    return total


@pytest.mark.parametrize("shots", [0, 2])
def test_the_best_candidate_is_the_most_probable_after_the_prompt(run, shots):
    lm = LanguageModel.load(run / "lm")
    settings = {"shots": (shots,), "joiner": " ", "separator": "\n", "seed": 3}
    report = evaluate(lm, lambda parts: lm.prompt("".join(parts)), TRAIN, TEST, **settings)
    right = 0
    for row, example in enumerate(TEST):
        order = np.random.default_rng((3, row)).permutation(len(TRAIN))[:shots]
        shown = "".join(f"{TRAIN[i].question} {TRAIN[i].answer}\n" for i in reversed(order))
        candidates = example.choices or ("dog", "cat", "goat")
        scores = [log_prob(lm, f"{shown}{example.question} ", f"{answer}\n") for answer in candidates]
        right += candidates[int(np.argmax(scores))] == example.answer
    assert report.results[0].accuracy == right / len(TEST)
    np.testing.assert_allclose(report.chance, (1 / 3 + 1 / 3 + 1 / 2 + 1 / 3) / 4)
    assert report.majority == 2 / 4


class Uniform(LanguageModel):
    """A model of equally probable tokens, which prefers the shortest candidates."""

    def token_nll(self, documents, *, stride=None):
        return [np.ones(len(ids) - 1, np.float32) for ids in documents]


def test_candidates_that_are_equally_good_share_and_long_texts_are_counted():
    settings = {"shots": (0, 1), "joiner": " ", "separator": "", "seed": 0}
    lm = Uniform(MODEL, TOKENIZER, {}, 12)

    def encode(parts):
        return list(map(ord, "".join(parts)))

    report = evaluate(lm, encode, TRAIN, TEST, **settings)
    first, second = report.results
    assert first.accuracy == second.accuracy == (1 / 2 + 1 / 2 + 0 + 1 / 2) / 4
    assert first.cut == 0
    assert second.cut > 0.5
    with pytest.raises(DataError, match="5 demonstrations cannot be drawn from 4"):
        evaluate(lm, encode, TRAIN, TEST, **settings | {"shots": (5,)})


def test_the_command_writes_a_report_that_depends_on_the_seed_alone(run, capsys):
    def report(*options: str) -> dict:
        files = str(run / "lm"), str(run / "test.jsonl"), "--train", str(run / "train.jsonl")
        assert cli.main(["few-shot", *files, "--shots", "0", "1", *options]) == 0
        return json.loads((run / "lm" / "eval" / "few-shot" / "report.json").read_text())

    assert report() == report("--seed", "0")
    assert [each["shots"] for each in report("--seed", "1")["results"]] == [0, 1]
    assert "most frequent answer: 50.0%" in capsys.readouterr().out


def test_files_that_are_no_questions_are_refused_by_line(run, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    for text, message in (
        ('{"question": "a"}', r"line 1: not a question \(KeyError\('answer'\)\)"),
        ('\n{"question": "a", "answer": 3}', "line 2: not a question.*answer is not a string"),
        ('{"question": "a", "answer": "b", "choices": ["c", "d"]}', "'b' is not among the choices"),
        ("", "holds no questions"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_examples(path)
    path.write_text('{"audio": "a.wav", "answer": "b"}')
    assert read_examples(path) == [Example(tmp_path / "a.wav", "b")]
    assert cli.main(["few-shot", str(run / "lm"), str(path), "--shots", "0"]) == USER_ERROR
    assert "is a language model of text" in capsys.readouterr().err
