"""Validation during training: the metrics over the dev split, and error rates for CTC objectives."""

from collections import Counter
from collections.abc import Callable, Mapping

import jax
import jiwer
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.nn.functional import Params
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.training.reporting import means
from jax_speechlm.training.source import BatchSource, MixtureSource
from jax_speechlm.training.state import Trainer


def validate(
    trainer: Trainer, params: Params, source: BatchSource, mesh: Mesh, stop_requested: Callable[[], bool]
) -> dict[str, float] | None:
    """Evaluates parameters on the whole dev split.

    In a mixture each stream's metrics are prefixed with its name; `loss` is the mean of their losses weighted by their
    shares of the steps. `wer` and `cer` are corpus rates of greedy decoding against the transcripts as tokenized,
    without a normalizer, to monitor the run. `jax-speechlm eval` computes the rates to report.

    Returns:
      Weighted means; empty without a dev split, None if `stop_requested`, checked before every batch, returns True.
    """
    if isinstance(source, MixtureSource):
        return _validate_streams(trainer, params, source, mesh, stop_requested)
    if source.dev_plan is None:
        return {}
    totals: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    references, hypotheses = [], []
    for batch in source.dev_batches():
        if stop_requested():
            return None
        sharded = meshes.shard_batch(mesh, batch)
        for name, (total, weight) in jax.device_get(trainer.evaluate(params, sharded)).items():
            totals[name] += float(total)
            weights[name] += float(weight)
        if trainer.greedy_decode is not None and _has_transcripts(batch):
            spelled = collapse(jax.device_get(trainer.greedy_decode(params, sharded)))
            said = {name: batch[name] for name in ("weight", "tokens", "token_length")}
            said = multihost_utils.process_allgather(said, tiled=True)  # as `spelled`, the rows of all hosts
            for row in np.flatnonzero(said["weight"]):
                references.append(source.tokenizer.decode(said["tokens"][row, : said["token_length"][row]]))
                hypotheses.append(source.tokenizer.decode(spelled[row]))
    figures = means({name: (totals[name], weights[name]) for name in totals})
    if references:
        figures["wer"] = jiwer.wer(references, hypotheses)
        figures["cer"] = jiwer.cer(references, hypotheses)
    return figures


def _has_transcripts(batch: Mapping[str, np.ndarray]) -> bool:
    return "audio" in batch and batch["tokens"].shape[1] > 0


def _validate_streams(
    trainer: Trainer, params: Params, source: MixtureSource, mesh: Mesh, stop_requested: Callable[[], bool]
) -> dict[str, float] | None:
    each = {}
    for name, part in source.parts.items():
        each[name] = validate(trainer, params, part, mesh, stop_requested)
        if each[name] is None:
            return None
    figures = {f"{name}_{figure}": value for name, found in each.items() for figure, value in found.items()}
    shares = {name: quota for name, quota in zip(each, source.plan.quotas, strict=True) if "loss" in each[name]}
    if shares:
        figures["loss"] = sum(each[name]["loss"] * share for name, share in shares.items()) / sum(shares.values())
    return figures
