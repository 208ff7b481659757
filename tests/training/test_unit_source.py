"""A run on units: its mixture is exact, it resumes bit by bit, and what does not fit together is named."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Text, UnitText
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import TrainingStopped, train
from jax_speechlm.training.source import open_source
from tests.data_pipelines.spoken_sets import align_evenly, write_spoken_set
from tests.data_pipelines.text_sets import write_text_set
from tests.data_pipelines.unit_sets import label, make_units

WORDS = ("a", "bad", "cab", "head", "fed", "bed")
MODEL = TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=24)
UNITS = 7


def sentences(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    """Speech that is labelled and aligned, texts, and a small model of both."""
    root = tmp_path_factory.mktemp("data")
    rows = [(text, 8000 + 500 * len(text)) for text in sentences(0, 30)]
    write_spoken_set(root / "speech", {"train": rows[:24], "dev": rows[24:]})
    write_text_set(root / "text", {"train": sentences(1, 30), "dev": sentences(2, 6)})
    units = make_units(root / "units", UNITS)
    for split in ("train", "dev"):
        label(read_index(root / "speech", split), units)
    align_evenly(read_index(root / "speech", "train").parts[0], failed=[3])
    data = UnitText(
        sets=("speech",),
        text_sets=("text",),
        units=str(root / "units"),
        data_dir=str(root),
        spoken=0.5,
        text=0.3,
        interleaved=0.2,
        stretch_words=2,
        context=32,
        tokens_per_batch=256,
    )
    return Experiment(
        data=data,
        objective=UnitLM(num_units=UNITS),
        model=MODEL,
        optimizer=Optimizer(schedule=WarmupCosine(peak=3e-3, warmup_steps=2)),
        num_steps=6,
        loop=LoopConfig(log_every=3, eval_every=3, checkpoint_every=3),
    )


def test_each_kind_of_document_has_its_share_of_the_rows(experiment):
    source = open_source(experiment)
    assert source.plan.names == ("spoken", "text", "interleaved")
    assert source.plan.quotas == (5000, 3000, 2000)
    said = source.plan.describe()
    for name in ("spoken", "text", "interleaved"):
        assert f"{name} " in said
    assert "1 interleaved not aligned" in said
    assert "interleaved of one word" in said
    vocabulary = Vocabulary.of(source.tokenizer, num_units=UNITS)
    kinds = {}
    for batch in source.batches(0, 4):
        for row, tokens in zip(batch["example_id"].tolist(), batch["tokens"], strict=True):
            first = [int(packing.num_rows) for packing in source.plan.packings]
            kind = int(np.searchsorted(np.cumsum(first), row, side="right"))
            has_unit, has_text = vocabulary.is_unit(tokens).any(), ((tokens > 0) & (tokens < vocabulary.boundary)).any()
            assert (has_unit, has_text) == {0: (True, False), 1: (False, True), 2: (True, True)}[kind]
            kinds[kind] = kinds.get(kind, 0) + 1
    assert set(kinds) == {0, 1, 2}
    one_kind = experiment.replace(data=experiment.data.replace(text=0, interleaved=0))
    assert open_source(one_kind).plan.names == ("spoken",)


def test_validation_is_on_speech_and_on_text(experiment):
    source = open_source(experiment)
    batches = list(source.dev_batches())
    seconds = sum((batch["samples"] * (batch["position"] > 0)).sum() for batch in batches) / 16_000
    frames = sum(source.units.num_frames(8000 + 500 * len(text)) for text in sentences(0, 30)[24:])
    assert seconds == pytest.approx(frames * source.units.frame_samples / 16_000)
    tokens = np.concatenate([batch["tokens"].ravel() for batch in batches])
    vocabulary = Vocabulary.of(source.tokenizer, num_units=UNITS)
    assert not (tokens == vocabulary.text).any()  # nothing interleaved
    assert (tokens == vocabulary.speech).sum() == 6


def test_a_run_resumes_to_the_last_bit(experiment, tmp_path):
    whole = train(experiment, tmp_path / "whole")
    assert {"unit_loss", "text_loss", "bits_per_second", "unit_entropy"} <= set(whole.dev)
    half = tmp_path / "half"
    train(experiment, half)
    checkpoints = sorted((half / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert [path.name for path in checkpoints] == ["3", "6"]
    shutil.rmtree(checkpoints[-1])
    again = train(experiment, half)
    assert again.step == 6
    states = [ckpt.read(ckpt.find(run)).state for run in (tmp_path / "whole", half)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    # Other codes are other batches: the run is not continued on them.
    meta = ckpt.read_meta(ckpt.find(half))
    assert meta["units"] == open_source(experiment).units.fingerprint


def test_a_run_is_not_continued_on_other_units(experiment, tmp_path):
    run = experiment.replace(num_steps=3)
    train(run, tmp_path / "run")
    root = Path(experiment.data.data_dir)
    folder = Path(experiment.data.units)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = make_units(folder, UNITS, seed=1)
    try:
        with pytest.raises(DataError, match=r"speech/train is not labelled .*is labelled with 1 other k-means"):
            train(run, tmp_path / "run")
        for split in ("train", "dev"):
            label(read_index(root / "speech", split), other)  # the same codes, of other units
        with pytest.raises(TrainingStopped, match="units"):
            train(run, tmp_path / "run")
    finally:
        for name, content in kept.items():
            (folder / name).write_bytes(content)


def test_a_vocabulary_that_does_not_fit_the_units_is_named(experiment):
    with pytest.raises(ValueError, match=r"units has 7 units and .* 9: set --objective.num_units 7"):
        open_source(experiment.replace(objective=UnitLM(num_units=9)))


def test_kinds_of_data_that_do_not_train_units_are_refused(experiment):
    content = json.loads(experiment.model_dump_json())
    with pytest.raises(ValueError, match="data of kind text do not train unit_lm"):
        Experiment.model_validate(content | {"data": Text(sets=("text",)).model_dump()})
    with pytest.raises(ValueError, match="data of kind unit_text do not train causal_lm"):
        Experiment.model_validate(content | {"objective": CausalLM().model_dump()})
    with pytest.raises(ValueError, match="are all 0"):
        UnitText(sets=("a",), units="u", spoken=0, text=0, interleaved=0)
