"""Tokens spell the column that is asked for, and a relabelled set has the audio of one set and the texts of its own."""

import numpy as np
import pytest

from data_pipelines.batching.plan import make_eval_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.relabel import relabel
from data_pipelines.storage.index import read_index, token_lengths
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.prepared import noise, write_prepared

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz 01")
TEXTS = ["one", "two words", "three"]


@pytest.fixture(scope="module")
def set_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    clips = [(noise(n, 4000 + 100 * n), text) for n, text in enumerate(TEXTS)]
    return write_prepared(folder, {"train": clips, "test": clips[:1]})


def spelled(index, column="text"):
    """Every row's text, read back from the batches' tokens, and its audio."""
    lengths = token_lengths(index, TOKENIZER, column)
    plan = make_eval_plan(index.num_samples, lengths, seconds_per_batch=2.0, batch_multiple=1, frame_samples=160)
    texts, audio = {}, {}
    for batch in open_batches(index, plan, TOKENIZER, num_steps=plan.steps_per_epoch, column=column):
        for row, example in enumerate(batch["example_id"].tolist()):
            if example >= 0:
                texts[example] = TOKENIZER.decode(batch["tokens"][row, : batch["token_length"][row]].tolist())
                audio[example] = batch["audio"][row, : batch["audio_length"][row]]
    return texts, audio


def test_tokens_spell_the_column_that_is_asked_for(set_dir):
    index = read_index(set_dir, "train")
    assert spelled(index)[0] == dict(enumerate(TEXTS))
    assert spelled(index, "speaker")[0] == dict(enumerate(index.column("speaker").to_pylist()))


def test_a_column_that_earlier_versions_did_not_write_names_the_remedy(set_dir):
    with pytest.raises(DataError, match=r"tiny/train has no column 'translation'.*prepare again with --force"):
        token_lengths(read_index(set_dir, "train"), TOKENIZER, "translation")


def test_a_relabelled_set_has_its_own_texts_and_the_same_audio(set_dir):
    part = read_index(set_dir, "train").parts[0]
    folder = set_dir.parent / "pseudo-tiny"
    for texts in (["x", "y", "z"], ["uno", "", "tres"]):  # a second one replaces the first
        relabel(part, texts, folder, {"transcribed_by": "a run"})
    index = read_index(folder, "train")
    assert index.column("text").to_pylist() == ["uno", "", "tres"]
    original, audio = spelled(read_index(set_dir, "train"))
    assert original == dict(enumerate(TEXTS))
    found, same = spelled(index)
    assert {row: found[row] for row in (0, 2)} == {0: "uno", 2: "tres"}
    for row in (0, 2):
        np.testing.assert_array_equal(same[row], audio[row])
    assert not list(folder.rglob("*.array_record*"))


def test_another_set_is_not_overwritten(set_dir):
    part = read_index(set_dir, "train").parts[0]
    with pytest.raises(DataError, match=r"exists, and is no set of pseudo-labels: name another --out"):
        relabel(part, TEXTS, set_dir, {})
