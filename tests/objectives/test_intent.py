"""Scores of commands are those of their words, pooled by attention, written out in NumPy."""

import json

import jax
import numpy as np
import pytest

from data_pipelines.core.commands import read_slots, write_slots
from data_pipelines.core.errors import DataError
from jax_speechlm.frontend.frontend import features
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.intent import Intent, Slot
from tests.training import tiny

SLOTS = (Slot(name="milk", values=("a bit of milk", "milk", "milk and milk")), Slot(name="size", values=("large",)))
CONFIG = Intent(intents=("order", "stop"), slots=SLOTS)
PIECES = [
    *("intent order", "intent stop", "milk absent", "milk a", "milk bit", "milk of", "milk milk", "milk and"),
    *("milk milk again", "size absent", "size large"),
]
VALUES = [
    [["intent order"], ["intent stop"]],
    [
        ["milk absent"],
        ["milk a", "milk bit", "milk of", "milk milk"],
        ["milk milk"],
        ["milk milk", "milk and", "milk milk again"],
    ],
    [["size absent"], ["size large"]],
]


def softmax(scores):
    return np.exp(scores - np.max(scores)) / np.exp(scores - np.max(scores)).sum()


def test_a_value_scores_as_its_words_do_where_they_are_attended_to():
    experiment = tiny.experiment("intent")
    rng, lengths = np.random.default_rng(0), np.array([9000, 16000])
    batch = {
        "audio": rng.normal(0, 2000, (2, 16000)).astype(np.int16),
        "audio_length": lengths.astype(np.int32),
        "example_id": np.arange(2, dtype=np.int32),
        "weight": np.ones(2, np.float32),
        "labels": np.array([[1, 3, 0], [0, -1, 1]], np.int32),
    }
    batch = jax.tree.map(jax.numpy.asarray, batch)
    objective = CONFIG.build(experiment.model, experiment.frontend)
    params = jax.tree.map(lambda x: 3 * x, functional.init(objective.make, jax.random.key(1)))
    log_probs = CONFIG.classifier(experiment.model, experiment.frontend)(params, batch, None)

    model = functional.bind(functional.declare(objective.make).graphdef, params)
    x_BxTxF, length_B = features(batch, experiment.frontend, None)
    hidden = np.asarray(model.encoder(x_BxTxF, length_B)[0], np.float64)
    frames = experiment.model.num_frames(np.asarray(length_B))
    nats, right = [], []
    for row in range(2):
        inside = hidden[row, : frames[row]]
        score, attention = (
            inside @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"], np.float64)
            for name in ("score", "attention")
        )
        weight = 1 / (1 + np.exp(-attention))
        pieces = dict(zip(PIECES, (weight * score).sum(0) / weight.sum(0), strict=True))
        for label, values in enumerate(VALUES):
            expected = softmax([sum(pieces[piece] for piece in value) for value in values])
            np.testing.assert_allclose(np.exp(log_probs[label][row, 0]), expected, rtol=2e-4)
            actual = batch["labels"][row, label]
            right.append(expected.argmax() == actual)
            nats += [-np.log(expected[actual])] if actual >= 0 else []
    loss, metrics = objective.loss(params, batch, None)
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (sum(right), len(nats)), rtol=1e-6)
    assert metrics["exact"][0] == all(right[:3]) + all(right[3:])


def test_labels_come_from_the_training_data():
    rows = [{"milk": " a  bit of milk", "size": "large"}, {"size": "small"}, {}]
    columns = {"intent": ["stop", "order", "stop"], "slots": [write_slots(row) for row in rows]}
    objective = Intent().of_data(columns.get)
    assert objective.intents == ("order", "stop")
    assert objective.slots == (
        Slot(name="milk", values=("a bit of milk",)),
        Slot(name="size", values=("large", "small")),
    )
    assert objective.num_labels == 3
    assert CONFIG.of_data({}.__getitem__) == CONFIG  # reads nothing
    with pytest.raises(DataError, match="no row has an intent"):
        Intent().of_data({"intent": ["", ""]}.get)


def test_slots_are_stored_in_one_form():
    text = write_slots({"size": " large ", "milk": "soy  milk", "sugar": " ", "shots": 2, "roast": None})
    assert read_slots(text) == {"milk": "soy milk", "shots": "2", "size": "large"}
    assert list(json.loads(text)) == ["milk", "shots", "size"]
    assert read_slots("") == {}
    with pytest.raises(TypeError, match="object of names and values"):
        write_slots(["large"])
    with pytest.raises(TypeError, match="for 'size'"):
        write_slots({"size": ["large"]})
