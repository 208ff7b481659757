"""Where a run's batches come from: prepared data sets, planned and read by `data_pipelines`."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

from data_pipelines import index as indexes
from data_pipelines import plan as plans
from data_pipelines import tokenizers
from data_pipelines.loader import Batch, Batches, open_batches
from data_pipelines.noise import NoiseReader
from data_pipelines.speed import with_speeds
from jax_speechlm.experiment import Experiment
from jax_speechlm.objectives.ctc import CTC
from jax_speechlm.training.checkpoints import pack_files


@runtime_checkable
class Source(Protocol):
    """What the training loop needs of its data."""

    plan: plans.Plan
    dev_plan: plans.Plan | None
    tokenizer: tokenizers.Tokenizer | None
    tokenizer_files: dict[str, str]

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """This host's rows of the training batches of steps `first_step` to `num_steps` - 1."""

    def dev_batches(self) -> Iterator[Batch]:
        """This host's rows of every validation batch, once."""


@dataclasses.dataclass(frozen=True)
class PreparedSource:
    """Prepared data sets, planned.

    Attributes:
      train, dev: indexes of the utterances; `dev` is None where no set has a dev split.
      plan, dev_plan: their batches.
      tokenizer: None for objectives that need no text.
      speeds: factors of speed perturbation in training.
      noise: what training mixes in, or None.
    """

    train: indexes.Index
    dev: indexes.Index | None
    plan: plans.Plan
    dev_plan: plans.Plan | None
    tokenizer: tokenizers.Tokenizer | None
    speeds: tuple[float, ...] = (1.0,)
    noise: NoiseReader | None = None

    @classmethod
    def open(cls, experiment: Experiment) -> "PreparedSource":
        """Plans an experiment's data sets.

        Raises:
          DataError: a set is not prepared, or its index does not belong to its records; the message names the remedy.
          ValueError: a noise set without a probability, or the other way round.
        """
        data = experiment.data
        train = indexes.read_sets(data.data_dir, data.sets, "train")
        dev = None
        if dev_sets := data.dev_sets or _with_dev_split(data.data_dir, data.sets):
            dev = indexes.read_sets(data.data_dir, dev_sets, "dev")
        needs_text = isinstance(experiment.objective, CTC)
        tokenizer = _tokenizer(data.tokenizer, train) if needs_text else None
        shared = {
            "seconds_per_batch": data.seconds_per_batch,
            "num_buckets": data.num_buckets,
            "batch_multiple": data.batch_multiple,
            "frame_samples": experiment.frontend.mel.frame_samples,
        }
        tokens = indexes.token_lengths(train, tokenizer) if tokenizer else None
        plan = plans.make_plan(
            *with_speeds(train.num_samples, tokens, data.speeds),
            seed=experiment.seed,
            min_seconds=data.min_seconds,
            max_seconds=data.max_seconds,
            max_crop=data.max_crop,
            shortest_first_epochs=data.shortest_first_epochs,
            **shared,
        )
        dev_plan = None
        if dev is not None:
            dev_tokens = indexes.token_lengths(dev, tokenizer) if tokenizer else None
            dev_plan = plans.make_eval_plan(dev.num_samples, dev_tokens, max_seconds=data.max_seconds, **shared)
        return cls(train, dev, plan, dev_plan, tokenizer, data.speeds, _noise(experiment))

    @property
    def tokenizer_files(self) -> dict[str, str]:
        """The tokenizer as a checkpoint's JSON holds it."""
        if self.tokenizer is None:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save(folder)
            return pack_files(folder)

    def batches(self, first_step: int, num_steps: int) -> Batches:
        return open_batches(
            self.train,
            self.plan,
            self.tokenizer,
            host=jax.process_index(),
            num_hosts=jax.process_count(),
            start_step=first_step,
            num_steps=num_steps - first_step,
            speeds=self.speeds,
            noise=self.noise,
        )

    def dev_batches(self) -> Batches:
        return open_batches(
            self.dev,
            self.dev_plan,
            self.tokenizer,
            host=jax.process_index(),
            num_hosts=jax.process_count(),
            num_steps=self.dev_plan.steps_per_epoch,
        )


def _with_dev_split(data_dir: str, sets: tuple[str, ...]) -> tuple[str, ...]:
    names = dict.fromkeys(name.partition(":")[0] for name in sets)
    return tuple(name for name in names if "dev" in indexes.splits_of(Path(data_dir) / name))


def _noise(experiment: Experiment) -> NoiseReader | None:
    data, probability = experiment.data, experiment.frontend.augment.noise_probability
    if (data.noise_set is None) != (probability == 0):
        raise ValueError(
            f"data.noise_set is {data.noise_set} and frontend.augment.noise_probability is {probability:g}: set both "
            "to mix noise in, or neither"
        )
    if data.noise_set is None:
        return None
    return NoiseReader(indexes.read_sets(data.data_dir, (data.noise_set,), "train"), experiment.seed)


def _tokenizer(directory: str | None, train: indexes.Index) -> tokenizers.Tokenizer:
    if directory is not None:
        return tokenizers.load_tokenizer(directory)
    return tokenizers.train_tokenizer(train.column("text").to_pylist(), "char")
