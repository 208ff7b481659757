#!/usr/bin/env python3
"""Classical baseline of docs/commands.md: a support vector machine on MFCCs for the intent and for each slot.

python scripts/command_baseline.py --sets coffee

Trains on "train" and measures "test", with the settings of `jax-speechlm baseline`. A slot without a value is one more
class of it. Prints the scores of `jax-speechlm eval` for each kind of vectors.
"""

from pathlib import Path
from typing import get_args

import numpy as np
import tyro
from rich.console import Console

from data_pipelines.storage import index as indexes
from jax_speechlm.evaluation.baselines import FRAME_SAMPLES, mfcc_vectors
from jax_speechlm.evaluation.batches import speech_batches
from jax_speechlm.evaluation.intent import CommandReport, commands_of, score_commands
from jax_speechlm.frontend.utterance_vectors import VectorKind
from jax_speechlm.inference.classical import SAMPLE_RATE
from jax_speechlm.inference.intent import Command
from jax_speechlm.models.classical.classifiers import ClassifierName, make_classifier


def main(sets: tuple[str, ...], data_dir: Path = Path("data"), classifier: ClassifierName = "svm") -> None:
    """Trains and tests classifiers of MFCCs for each slot of spoken commands."""
    train, test = (indexes.read_sets(data_dir, sets, split, SAMPLE_RATE) for split in ("train", "test"))
    known, actual = commands_of(train), commands_of(test)
    names = sorted({name for command in known for name in command.slots})
    for kind in get_args(VectorKind):
        x_train, x_test = (
            mfcc_vectors(kind, speech_batches(index, FRAME_SAMPLES, 120.0), len(index)) for index in (train, test)
        )

        def predict(labels: list[str], x_train: np.ndarray = x_train, x_test: np.ndarray = x_test) -> list[str]:
            if len(set(labels)) == 1:
                return labels[:1] * len(x_test)
            return make_classifier(classifier, 0).fit(x_train, np.array(labels)).predict(x_test).tolist()

        intents = predict([command.intent for command in known])
        values = {name: predict([command.slots.get(name, "") for command in known]) for name in names}
        predicted = [
            Command(intent, {name: values[name][row] for name in names if values[name][row]}, 1.0)
            for row, intent in enumerate(intents)
        ]
        score = score_commands(actual, predicted)
        report = CommandReport(sets=sets, split=f"test, {classifier} on {kind} of MFCCs", intents=1, scores=(score,))
        for table in report.tables():
            Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
