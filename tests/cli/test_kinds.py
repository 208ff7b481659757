"""Kinds of objective, model and schedule are chosen on the command line as any other setting."""

import pytest
import tyro

from jax_speechlm.cli.experiment import ExperimentOptions, bind_experiment, choose_kinds
from jax_speechlm.frontend.cepstra import Cepstra
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment


def chosen(experiment: ExperimentOptions, config: str) -> Experiment:
    del config
    return experiment


def parse(*options: str) -> Experiment:
    function, argv = bind_experiment(chosen, options, "demo/finetune")
    return tyro.cli(function, args=argv)


def test_another_kind_keeps_the_settings_that_both_have():
    plain = registry.load("demo/pretrain")
    changed, left = choose_kinds(
        plain, ["--objective.kind", "wav2vec2", "--num-steps", "3", "--optimizer.schedule.kind=noam"]
    )
    assert (changed.objective.kind, changed.optimizer.schedule.kind) == ("wav2vec2", "noam")
    assert changed.optimizer.schedule.warmup_steps == plain.optimizer.schedule.warmup_steps
    assert changed.model == plain.model
    assert left == ["--num-steps", "3"]


def test_what_the_new_kind_requires_is_read_from_its_own_option():
    options = ("--objective.kind", "classification", "--objective.classes", "low", "high", "--data.label", "language")
    experiment = parse(*options, "--num-steps", "7")
    assert experiment.objective.classes == ("low", "high")
    assert (experiment.data.label, experiment.num_steps) == ("language", 7)


def test_features_of_another_kind_are_chosen_by_their_variant():
    plain = registry.load("demo/finetune").frontend
    no_bands = ("--frontend.augment.freq-masks", "0")
    mel = parse("--frontend.mel.variant", "lpcc", "--frontend.mel.order", "10", *no_bands).frontend.mel
    assert mel == Cepstra(variant="lpcc", order=10)
    kept = parse("--frontend.mel.variant=librosa").frontend
    assert kept == plain.replace(mel=plain.mel.replace(variant="librosa"))
    assert parse("--frontend.mel.variant", "whisper").frontend.mel == WhisperMel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frontend.mel.variant", "mel"], "choose one of kaldi, .*whisper, waveform, mfcc, lpc, lpcc"),
        (["--objective.kind", "ctx"], "--objective.kind ctx: choose one of aed, best_rq, "),
        (["--data.nothing.kind", "x"], "Speech has no setting 'nothing'"),
        (["--nothing.here.kind", "x"], "nothing is no single part of an experiment"),
        (["--data.sets.0.kind", "x"], "data.sets.0 is no single part|data.sets is no single part"),
        (["--objective.kind", "classification"], "classes"),
        (["--model.kind", "transformer"], "ctc does not train a transformer: set model to a ConformerConfig"),
    ],
)
def test_a_kind_that_does_not_exist_or_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        parse(*options)
