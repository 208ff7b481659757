"""Runs of word vectors: they learn which words are alike, resume bit by bit, and are used by the ordinary commands."""

import json
import shutil

import jax
import numpy as np
import pytest

import jax_speechlm
from data_pipelines.core.errors import DataError
from data_pipelines.storage.word2vec import read_word2vec
from data_pipelines.tokenizers.base import load_tokenizer
from jax_speechlm import cli
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.inference.word_vectors import WordTable
from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.word_vectors.cbow import CBOW
from jax_speechlm.objectives.word_vectors.glove import GloVe
from jax_speechlm.objectives.word_vectors.skip_gram import SkipGram
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.planning.workload import workload
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Text, WordPairs
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.concerns import concerns
from jax_speechlm.training.loop import train
from jax_speechlm.training.source import open_source
from tests.contracts.test_tasks import verify_task
from tests.data_pipelines.text_sets import write_text_set
from tests.evaluation.runs import save_run
from tests.training import tiny

NOUNS, VERBS = ("cat", "dog", "bird", "fish"), ("sees", "hears", "follows", "finds")
OBJECTIVES = (SkipGram(window=2, subsample=None), CBOW(window=2, subsample=None), GloVe(most=20))
SKIP_GRAM = pytest.mark.parametrize("run", OBJECTIVES[:1], indirect=True, ids=lambda objective: objective.kind)
STEPS = 60


def sentences(seed: int, count: int) -> list[str]:
    """Sentences of a noun, a verb, a noun: the words of either kind stand in the same contexts."""
    rng = np.random.default_rng(seed)
    return [f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} a {rng.choice(NOUNS)}. Rare{seed}x{i}" for i in range(count)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A prepared set, and its tokenizer by the command."""
    root = tmp_path_factory.mktemp("words")
    write_text_set(root / "animals", {"train": sentences(0, 200), "dev": sentences(1, 20)})
    command = ["train-tokenizer", "--sets", "animals", "--kind", "word", "--data-dir", str(root)]
    assert cli.main([*command, "--out", str(root / "tokenizer")]) == 0
    return root


def experiment(root, objective) -> Experiment:
    shared = {"sets": ("animals",), "data_dir": str(root), "tokenizer": str(root / "tokenizer")}
    if objective.kind == "glove":
        data = WordPairs(**shared, window=4, held_out=0.05, context=32, tokens_per_batch=256)
    else:
        data = Text(**shared, context=32, tokens_per_batch=256)
    return Experiment(
        data=data,
        objective=objective,
        model=WordVectorsConfig(dim=6),
        optimizer=Optimizer(kind="adam", schedule=WarmupCosine(peak=0.05, warmup_steps=2)),
        num_steps=STEPS,
        loop=LoopConfig(log_every=20, eval_every=20, checkpoint_every=20),
    )


@pytest.fixture(scope="module", params=OBJECTIVES, ids=lambda objective: objective.kind)
def run(request, root):
    folder = root / "runs" / request.param.kind
    return experiment(root, request.param), folder, train(experiment(root, request.param), folder)


def test_the_vocabulary_has_the_frequent_words(root):
    tokenizer = load_tokenizer(root / "tokenizer")
    assert set(tokenizer.words) == {"the", "a", *NOUNS, *VERBS}
    assert tokenizer.counts[:2] == (200, 200)


def test_it_learns_what_is_alike(run):
    trained, folder, result = run
    if trained.objective.kind == "glove":  # words are alike that occur near each other, as nouns and verbs do here
        assert result.train["loss"] < 0.3
        return
    assert result.dev["loss"] < 3  # it begins at 6 log 2 = 4.2
    table = jax_speechlm.load(folder).model
    assert {word for word, _ in table.nearest("cat", 3)} == set(NOUNS) - {"cat"}
    assert {word for word, _ in table.nearest("sees", 3)} == set(VERBS) - {"sees"}


def test_it_resumes_bit_by_bit(run, tmp_path):
    trained, folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    for step in (40, STEPS):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step), ignore_errors=True)
    kept = sorted(int(each.name) for each in (tmp_path / "run" / "checkpoints").iterdir() if each.name.isdigit())
    assert kept[-1:] != [STEPS]
    train(trained, tmp_path / "run")
    once, again = (ckpt.read_params(ckpt.find(each))[0] for each in (folder, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, once, again)


def test_its_batches_are_as_declared(run):
    trained, _, _ = run
    source = open_source(trained)
    verify_task(trained, next(iter(source.batches(0, 1))))
    verify_task(trained, next(iter(source.dev_batches())))
    assert workload(trained, None).useful > 0.5


def test_it_can_be_planned_without_the_data(run, tmp_path):
    trained, _, _ = run
    data = trained.data.replace(data_dir=str(tmp_path), tokenizer="words-300")
    load = workload(trained.replace(data=data), None)
    assert load.tokenizer.vocab_size == 300
    batch, objective = load.abstract(load.shapes[0], trained), trained.build(load.tokenizer)
    params = functional.declare(objective.make).shapes
    assert jax.eval_shape(objective.loss, params, batch, jax.random.key(0))[0].shape == ()


@SKIP_GRAM
def test_commands_use_it(run, tmp_path, capsys):
    _, folder, _ = run
    assert cli.main(["words", "nearest", str(folder), "cat", "--count", "3"]) == 0
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == ["bird", "dog", "fish"]
    assert cli.main(["words", "similarity", str(folder), "cat", "Dog"]) == 0
    assert float(capsys.readouterr().out) > 0.5
    assert cli.main(["words", "analogy", str(folder), "cat", "dog", "sees"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5

    text = tmp_path / "vectors.txt"
    assert cli.main(["export", str(folder), "--to", "word2vec", "--out", str(text)]) == 0
    words, vectors = read_word2vec(text)
    model = jax_speechlm.load(folder)
    np.testing.assert_array_equal(vectors, model.embed(list(words)))
    capsys.readouterr()
    assert cli.main(["words", "nearest", str(text), "cat", "--count", "1"]) == 0
    assert capsys.readouterr().out.split()[0] in NOUNS

    assert cli.main(["embed", str(folder), "the cat", "unheard", "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_allclose(arrays["embeddings"][0], vectors[[words.index(w) for w in ("the", "cat")]].mean(0))
        assert not arrays["embeddings"][1].any()


@SKIP_GRAM
def test_evaluation_ranks_pairs_and_solves_analogies(run, tmp_path):
    _, folder, _ = run
    pairs, analogies = tmp_path / "pairs.tsv", tmp_path / "analogies.txt"
    rated = [("cat", "dog", 9), ("sees", "hears", 8), ("cat", "sees", 1), ("Dog", "finds", 0), ("cat", "rare", 5)]
    pairs.write_text("# rated\n" + "".join(f"{a}\t{b}\t{rating}\n" for a, b, rating in rated))
    analogies.write_text(": nonsense\ncat dog sees hears\ncat dog sees unheard\n")
    report = jax_speechlm.evaluate(folder, [str(pairs), str(analogies)])
    first, second = report.files
    assert (first.kind, first.lines, first.known) == ("pairs", 5, 4)
    assert first.value > 0.7
    assert (second.kind, second.lines, second.known) == ("analogies", 2, 1)
    assert json.loads((folder / "eval" / "words" / "report.json").read_text())["words"] == 10
    pairs.write_text("cat dog\n")
    with pytest.raises(DataError, match="line 1 has neither two words and a rating nor four words"):
        jax_speechlm.evaluate(folder, [str(pairs)])


def test_a_run_without_held_out_pairs_is_warned_of(root):
    trained = experiment(root, OBJECTIVES[-1])
    trained = trained.replace(data=trained.data.replace(held_out=0.0))
    source = open_source(trained)
    assert source.dev_plan is None
    assert any("set --data.held-out" in warning for warning in concerns(trained, source))


def test_what_has_no_word_vectors_is_named(tmp_path):
    save_run(tmp_path / "run", tiny.experiment(), tiny.CharTokenizer(tiny.LETTERS))
    with pytest.raises(CheckpointError, match="was trained by ctc, which has no vectors of words"):
        WordTable.load(tmp_path / "run")
