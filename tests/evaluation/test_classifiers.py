"""Classification reports: figures against counting by hand, and a checkpoint's predictions in any batches."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.storage.index import read_index
from data_pipelines.storage.records import RecordReader
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.classification import score
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.recipes.experiment import Experiment, Speech, Text
from jax_speechlm.training.runs import LoadedRun
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.text_sets import write_text_set
from tests.evaluation.runs import save_run

NAMES = ("a", "b", "c", "d")


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_figures_are_those_of_counting(rows):
    true, predicted = np.array(rows).T
    report = score(true, predicted, NAMES)

    def share(part, whole):
        return len(part) / len(whole) if whole else 0.0

    f1s = []
    for number, name in enumerate(NAMES):
        actual = [row for row in rows if row[0] == number]
        guessed = [row for row in rows if row[1] == number]
        hits = [row for row in actual if row[1] == number]
        precision, recall = share(hits, guessed), share(hits, actual)
        f1s.append(2 * precision * recall / (precision + recall) if hits else 0.0)
        found = report.classes[name]
        np.testing.assert_allclose((found.precision, found.recall, found.f1), (precision, recall, f1s[-1]))
        assert found.rows == len(actual)
        assert report.confusion[number] == tuple(sum(row == (number, other) for row in rows) for other in range(4))
    assert report.f1 == pytest.approx(np.mean(f1s))
    assert report.accuracy == pytest.approx(np.mean(true == predicted))
    assert report.majority == max(each.rows for each in report.classes.values()) / len(rows)


def test_rows_that_were_not_predicted_count_nowhere():
    report = score(np.array([0, 1, 1]), np.array([0, -1, 1]), NAMES)
    assert (report.accuracy, report.skipped) == (1.0, 1)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        score(np.array([0]), np.array([-1]), NAMES)


TOKENIZER = CharTokenizer("abcdefgh ")
TEXTS = ["a bad cab", "fed", "", "head of a gag" * 4, "abcabc"]
LABELS = ["low", "high", "low", "high", "high"]
OBJECTIVE = Classification(classes=("low", "high"))


def evaluate(folder: Path, *options: str) -> dict:
    options = ["--sets", "things", f"--data-dir={folder / 'data'}", f"--out={folder / 'report'}", *options]
    assert cli.main(["eval", str(folder / "run"), *options]) == 0
    return json.loads((folder / "report" / "report.json").read_text())


def alone(run: LoadedRun, batch: dict[str, np.ndarray]) -> int:
    """The class of one row in a batch of its own."""
    logits = OBJECTIVE.classifier(run.experiment.model, run.experiment.frontend, run.tokenizer)
    batch = {name: jnp.asarray(value)[None] for name, value in batch.items()}
    return int(jax.jit(lambda params, batch: logits(params, batch, None))(run.params, batch)[0].argmax())


def test_texts_are_classified(tmp_path, capsys):
    write_text_set(tmp_path / "data" / "things", {"test": TEXTS}, label=LABELS)
    experiment = Experiment(
        data=Text(sets=("things",), label="label", context=32, tokens_per_batch=64),
        objective=OBJECTIVE,
        model=TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16),
    )
    save_run(tmp_path / "run", experiment, TOKENIZER)
    report = evaluate(tmp_path)
    run = LoadedRun.load(tmp_path / "run", Classification, "")
    confusion = np.zeros((2, 2), int)
    for text, label in zip(TEXTS, LABELS, strict=True):
        if text:
            ids = [TOKENIZER.vocab_size, *TOKENIZER.encode(text), TOKENIZER.vocab_size][:32]
            row = {"tokens": ids, "segment": [1] * len(ids), "position": np.arange(len(ids))}
            confusion[OBJECTIVE.classes.index(label), alone(run, row)] += 1
    assert report["confusion"] == confusion.tolist()
    assert report["skipped"] == 1
    assert report["label"] == "label"
    assert "true, by predicted" in capsys.readouterr().out


def test_utterances_are_classified_whatever_the_batch(tmp_path):
    clips = [(noise(seed, 5_000 + 9_000 * (seed % 2)), ("low", "high")[seed // 2]) for seed in range(4)]
    write_prepared(tmp_path / "data" / "things", {"test": clips})
    mel = LogMel(num_mel_bins=8, stack=2)
    experiment = Experiment(
        data=Speech(sets=("things",)),
        objective=OBJECTIVE,
        frontend=FrontEnd(mel=mel),
        model=ConformerConfig(input_dim=mel.input_dim, dim=8, num_layers=1, num_heads=2, kernel_size=3),
    )
    save_run(tmp_path / "run", experiment, None)
    report = evaluate(tmp_path, "--seconds-per-batch=1")
    assert report["confusion"] == evaluate(tmp_path, "--seconds-per-batch=60")["confusion"]
    run = LoadedRun.load(tmp_path / "run", Classification, "")
    reader, confusion = RecordReader(read_index(tmp_path / "data" / "things", "test")), np.zeros((2, 2), int)
    for row, (samples, label) in enumerate(clips):
        assert reader.read(row)[1] == label
        predicted = alone(run, {"audio": samples, "audio_length": np.int32(len(samples))})
        confusion[OBJECTIVE.classes.index(label), predicted] += 1
    assert report["confusion"] == confusion.tolist()


def test_a_label_without_a_class_is_an_error(tmp_path, capsys):
    write_text_set(tmp_path / "data" / "things", {"test": TEXTS}, label=["low", "middle", "low", "low", "low"])
    experiment = Experiment(
        data=Text(sets=("things",), label="label", context=32, tokens_per_batch=64),
        objective=OBJECTIVE,
        model=TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16),
    )
    save_run(tmp_path / "run", experiment, TOKENIZER)
    assert (
        cli.main(["eval", str(tmp_path / "run"), "--sets", "things", f"--data-dir={tmp_path / 'data'}"]) == USER_ERROR
    )
    assert "'middle' is none of the classes" in capsys.readouterr().err
