"""Source of the batches of word pairs, for GloVe."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_pipelines.batching.word_pairs import WordPairPlan, count_pairs, open_word_pairs
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import open_tokens
from jax_speechlm.parallel.mesh import row_group
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.runs import read_tokenizer


@dataclasses.dataclass(frozen=True)
class WordPairSource:
    """Co-occurrence counts of prepared texts, of which a share validates; a `training.source.BatchSource`."""

    plan: WordPairPlan
    dev_plan: WordPairPlan | None
    tokenizer: Tokenizer

    @classmethod
    def open(cls, experiment: Experiment) -> "WordPairSource":
        """Counts the pairs of an experiment's texts, in the same order on every process."""
        data = experiment.data
        tokenizer = read_tokenizer(data.tokenizer)
        tokens = open_tokens(indexes.read_sets(data.data_dir, data.sets, "train"), tokenizer)
        pairs, held_out = count_pairs(tokens, tokenizer.vocab_size, data.window).split(data.held_out, experiment.seed)
        shape = data.context, data.sequences_per_batch
        dev_plan = WordPairPlan(held_out, *shape, None) if len(held_out.count) else None
        return cls(WordPairPlan(pairs, *shape, experiment.seed), dev_plan, tokenizer)

    def batches(self, first_step: int, num_steps: int) -> Iterator[dict[str, np.ndarray]]:
        return _open(self.plan, first_step, num_steps - first_step)

    def dev_batches(self) -> Iterator[dict[str, np.ndarray]]:
        return _open(self.dev_plan, 0, self.dev_plan.steps_per_epoch)

    def fingerprints(self) -> dict[str, str | None]:
        return {"units": None, "labels": None}

    def stream(self, step: int) -> str:
        del step
        return ""


def _open(plan: WordPairPlan, start_step: int, num_steps: int) -> Iterator[dict[str, np.ndarray]]:
    host, num_hosts = row_group()
    return open_word_pairs(plan, host=host, num_hosts=num_hosts, start_step=start_step, num_steps=num_steps)
