"""Heads on every token of a text become runs that tag texts and answer questions, and go back as they were."""

import json

import numpy as np
import pytest

import jax_speechlm
from jax_speechlm import cli
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.text_tokens import _window_starts, best_span
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf import weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import SPECIAL, TEXTS, change_json, load, write_text_model

LONG = "the cat sat on the mat, " * 20
HEADS = {**{name: kind for kind, name in families.TAGGERS.items()}}
HEADS |= {name: kind for kind, name in families.READERS_OF_SPANS.items()}


@pytest.mark.parametrize("architecture", HEADS)
def test_a_model_with_a_head_on_tokens_becomes_a_run_and_a_folder_again(tmp_path, architecture):
    kind = HEADS[architecture]
    arrays = write_text_model(tmp_path / "theirs", kind, architecture=architecture, **SPECIAL[kind])
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed
    run = LoadedRun.read(tmp_path / "run")
    write_checked(run, tmp_path / "again")
    again = weights.read_weights(tmp_path / "again")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    assert load(tmp_path / "again", "config.json")["architectures"] == [architecture]
    assert read_folder(tmp_path / "again").experiment == run.experiment


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    special = SPECIAL["distilbert"]
    write_text_model(folder / "theirs", "distilbert", architecture="DistilBertForTokenClassification", **special)
    change_json(folder / "theirs", "config.json", id2label={"0": "O", "1": "B-PER"})
    import_run(folder / "theirs", folder / "run")
    return folder / "run"


def test_entities_are_the_stretches_of_a_label(tagger, capsys):
    """Every token is a B, so each begins an entity; long texts are cut into parts, and each token is tagged once."""
    model = jax_speechlm.load(tagger)
    assert model.abilities == ("tag",)
    texts = [*TEXTS, "", LONG]
    found = model.tag(texts)
    assert found[-2] == []
    tokenizer, vocabulary = model.model.tokenizer, Vocabulary.of(model.model.tokenizer)
    ids, offsets = tokenizer.encode_with_offsets(TEXTS[1])
    row = np.array([vocabulary.enclose(ids)], np.int32)
    place = np.arange(row.shape[1], dtype=np.int32)[None]
    logits = model.model._logits({"tokens": row, "segment": np.ones_like(row), "position": place})[0][1:-1]
    is_entity = np.asarray(logits).argmax(-1) == 1
    expected = [offset for offset, inside in zip(offsets, is_entity, strict=True) if inside]
    assert [(entity.start, entity.end) for entity in found[1]] == expected
    for text, entities in zip(texts, found, strict=True):
        assert all(entity.text == text[entity.start : entity.end] for entity in entities)
        spans, alone = ([(each.start, each.end) for each in part] for part in (entities, model.tag([text])[0]))
        assert spans == alone
    assert found[-1][-1].end > len(LONG) - 9
    capsys.readouterr()
    cli.main(["classify", str(tagger), TEXTS[1]])
    assert len(json.loads(capsys.readouterr().out)["entities"]) == len(found[1])


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    write_text_model(folder / "theirs", "bert", architecture="BertForQuestionAnswering", **SPECIAL["bert"])
    import_run(folder / "theirs", folder / "run")
    return folder / "run"


def test_answers_are_parts_of_their_texts_whatever_else_is_read(reader, tmp_path, capsys):
    model, texts = jax_speechlm.load(reader), [*TEXTS, "", LONG]
    answers = model.answer("what sat?", texts)
    assert answers[-2] is None
    for text, answer in zip(texts, answers, strict=True):
        if answer is not None:
            assert answer.text == text[answer.start : answer.end] != ""
            assert 0 < answer.probability <= 1
    alone = model.answer("what sat?", TEXTS[0])[0]
    assert (alone.start, alone.end) == (answers[0].start, answers[0].end)
    with pytest.raises(ValueError, match="shorten it"):
        model.answer(LONG, [TEXTS[0]])
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    capsys.readouterr()
    cli.main(["answer", str(reader), "what sat?", *(str(tmp_path / f"{n}.txt") for n in range(len(texts)))])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(texts) - 1
    assert lines == sorted(lines, key=lambda line: -line["probability"])


def test_the_best_span_is_that_of_an_enumeration():
    rng = np.random.default_rng(0)
    for length in (1, 2, 9, 40):
        logits = rng.normal(0, 3, (length, 2))
        first, last = (np.exp(logits[:, i]) / np.exp(logits[:, i]).sum() for i in range(2))
        spans = {(i, j): first[i] * last[j] for i in range(length) for j in range(i, min(i + 15, length))}
        (start, end), share = max(spans.items(), key=lambda item: item[1])
        assert best_span(logits)[:2] == (start, end)
        np.testing.assert_allclose(best_span(logits)[2], share)


def test_windows_cover_a_text_and_overlap():
    for length in range(60):
        for room in (8, 9, 20):
            starts = list(_window_starts(length, room))
            covered = {place for start in starts for place in range(start, min(start + room, length))}
            assert covered == set(range(length))
            assert all(start < length for start in starts)
