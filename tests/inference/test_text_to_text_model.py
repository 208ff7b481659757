"""A text-to-text model from JSON lines to a report, and its generation against its own logits."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_speechlm
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import open_tokens
from data_pipelines.text.cleaning import Cleaning, clean
from data_pipelines.text.documents import Document
from data_pipelines.text.personal_data import scrub
from jax_speechlm import cli
from jax_speechlm.decoding.lm.generate import Beam, Sampling
from jax_speechlm.evaluation.comparison import compare, read_report
from jax_speechlm.evaluation.report import Utterance
from jax_speechlm.evaluation.text_to_text import _exact
from jax_speechlm.inference.lm.text_to_text import TextToTextModel
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.text_to_text import TextToText, make_model
from jax_speechlm.recipes.experiment import Experiment, Text
from jax_speechlm.training.loop import train
from tests.objectives.text import MODEL, TOKENIZER
from tests.training import tiny

CONFIG = TextEncoderDecoderConfig(
    encoder=MODEL.replace(causal=False, dropout=0),
    decoder=AttentionDecoderConfig(dim=16, num_layers=1, num_heads=2, ffn_dim=24, max_tokens=24),
)
TEXTS = ["", "a cab", "deaf mice are quick to eat", "no"]


@functools.cache
def model() -> TextToTextModel:
    make = make_model(CONFIG, TextToTextModel(CONFIG, TOKENIZER, {}).vocabulary, "text_to_text")
    params = jax.tree.map(lambda leaf: 4 * leaf, functional.init(make, jax.random.key(1)))
    return TextToTextModel(CONFIG, TOKENIZER, params)


def next_log_probs(text: str, so_far: list[int]) -> np.ndarray:
    """The log-probability of each id after a beginning of an answer, by the whole model at once."""
    own = model()
    module = functional.bind(
        functional.declare(make_model(CONFIG, own.vocabulary, "text_to_text")).graphdef, own.params
    )

    def row(ids: list[int]) -> tuple[jax.Array, ...]:
        return jnp.array([ids]), jnp.ones((1, len(ids)), jnp.int32), jnp.arange(len(ids))[None]

    source = module.encode(*row([own.vocabulary.begin, *TOKENIZER.encode(text)]))
    hidden = module.decoder(*row([own.vocabulary.boundary, *so_far]), source)
    return np.asarray(jax.nn.log_softmax(module.decoder.logits(hidden[:, -1]))[0], np.float64)


def test_greedy_answers_take_the_most_probable_token_each_time():
    own = model()
    for text, (answer,) in zip(TEXTS, own.generate(TEXTS, max_tokens=6), strict=True):
        ids, total = [], 0.0
        while True:
            scores = np.where(own.vocabulary.may_follow(), log_probs := next_log_probs(text, ids), -np.inf)
            token = int(scores.argmax())
            total += log_probs[token]
            if token == own.vocabulary.boundary:
                break
            ids.append(token)
            if len(ids) == 6:
                break
        assert answer.text == TOKENIZER.decode(ids)
        np.testing.assert_allclose(answer.log_prob, total, rtol=1e-5)


@pytest.mark.parametrize("method", [Sampling(), Beam(size=3)])
def test_an_answer_depends_on_its_text_alone(method):
    together = model().generate(TEXTS, method, max_tokens=5, samples=2, seed=3)
    assert len(together[1]) == (3 if isinstance(method, Beam) else 2)
    for text, answers in zip(TEXTS, together, strict=True):
        (alone,) = model().generate([text], method, max_tokens=5, samples=2, seed=3)
        assert [each.text for each in alone] == [each.text for each in answers]
        np.testing.assert_allclose([a.log_prob for a in alone], [a.log_prob for a in answers], rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of words with their letters in reverse, some documents without a target, and a run on it."""
    folder = tmp_path_factory.mktemp("text_to_text")
    rng, lines = np.random.default_rng(0), []
    for number in range(80):
        word = "".join(rng.choice(list("abcdefgh"), 4))
        line = {"text": f"reverse {word}", "target": word[::-1], "split": ("train", "test", "dev")[min(number % 10, 2)]}
        lines.append(line if number % 7 else {"text": word, "split": "train"})
    path = folder / "words.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    prepare("words", text=(str(path),), cleaning=Cleaning(steps=("unicode", "exact")), data_dir=folder)
    (folder / "plain.jsonl").write_text('{"text": "no target", "split": "test"}\n')
    prepare("plain", text=(str(folder / "plain.jsonl"),), cleaning=Cleaning(steps=("unicode",)), data_dir=folder)
    data = Text(sets=("words",), data_dir=str(folder), context=24, tokens_per_batch=24 * 8)
    settings = {name: getattr(tiny.experiment(), name) for name in ("optimizer", "num_steps", "mesh")}
    train(Experiment(data=data, objective=TextToText(), model=CONFIG, **settings), folder / "run")
    return folder


def test_documents_with_targets_are_two_texts(folder):
    index = indexes.read_sets(folder, ("words",), "train")
    tokens = open_tokens(index, TOKENIZER, targets=True)
    rows = zip(index.column("text").to_pylist(), index.column("target").to_pylist(), strict=True)
    for row, (text, target) in enumerate(rows):
        ids = tokens.read(row, 0, int(tokens.lengths[row])).tolist()
        between = [TOKENIZER.vocab_size, *TOKENIZER.encode(target)] if target else []
        assert ids == [*TOKENIZER.encode(text), *between]


def test_only_text_to_text_reads_targets(folder):
    index = indexes.read_sets(folder, ("words",), "train")
    tokens = open_tokens(index, TOKENIZER)
    assert tokens.read(0, 0, 99).tolist() == TOKENIZER.encode(index.column("text")[0].as_py())
    with pytest.raises(DataError, match="no document has a target"):
        open_tokens(indexes.read_sets(folder, ("plain",), "test"), TOKENIZER, targets=True)


def test_near_copies_with_targets_are_kept_and_targets_scrubbed():
    documents = [Document(str(n), "write to ann@example.com today", target=f"bob@example.com {n}") for n in range(2)]
    kept = list(clean(documents, Cleaning(steps=("near", "personal"))))
    assert [each.target for each in kept] == [f"{scrub('bob@example.com', '')} {n}" for n in range(2)]
    assert not any("@" in each.text + each.target for each in kept)


@pytest.mark.parametrize(("hypothesis", "is_exact"), [("Two cats", 1), ("two cats!", 1), ("two dogs", 0)])
def test_an_answer_is_exact_as_normalised(hypothesis, is_exact):
    utterance = Utterance(id="a", reference="two cats", hypothesis=hypothesis)
    assert _exact([utterance], "basic").tolist() == [[is_exact, 1]]


def test_a_run_is_evaluated_and_answers(folder, capsys):
    report = jax_speechlm.evaluate(folder / "run", ["words"], data_dir=folder)
    index = indexes.read_sets(folder, ("words",), "test")
    targets = [target for target in index.column("target").to_pylist() if target]
    assert report.scored == len(report.utterances) == len(targets)
    assert [each.reference for each in report.utterances] == targets
    assert report.exact == np.mean([each.reference == each.hypothesis for each in report.utterances])
    assert set(report.measures()) == {"BLEU", "chrF", "exact"}
    (path,) = (folder / "run" / "eval").glob("*/report.json")
    assert [each.metric for each in compare(report, read_report(path))] == ["BLEU", "chrF", "exact"]
    capsys.readouterr()
    (answers,) = jax_speechlm.load(folder / "run").generate(["reverse abcd"], Sampling(temperature=0), max_tokens=9)
    assert cli.main(["generate", str(folder / "run"), "reverse abcd", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == f"{answers[0].text}\n"


def test_what_cannot_be_done_is_refused(folder, capsys):
    assert cli.main(["eval", str(folder / "run"), "--sets", "plain", "--data-dir", str(folder)]) != 0
    assert 'no document has a target; prepare JSON lines with "text" and "target"' in capsys.readouterr().err
    with pytest.raises(DataError, match="leave the step out"):
        prepare("split", text=(str(folder / "words.jsonl"),), cleaning=Cleaning(steps=("sentences",)), data_dir=folder)
