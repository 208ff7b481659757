"""Validation during training: the metrics over the dev split, and error rates for CTC objectives."""

from collections import Counter
from collections.abc import Callable
from typing import Any

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
    trainer: Trainer,
    params: Params,
    source: BatchSource,
    mesh: Mesh,
    stop_requested: Callable[[], Any],
    show: Callable[[dict[str, np.ndarray]], None] | None = None,
    show_transcripts: Callable[[str, str], None] | None = None,
) -> dict[str, float] | None:
    """Evaluates parameters on the whole dev split.

    In a mixture each stream's metrics are prefixed with its name; `loss` is the mean of their losses weighted by their
    shares of the steps. `wer` and `cer` are corpus rates of greedy decoding against the transcripts as tokenized,
    without a normalizer, to monitor the run. `jax-speechlm eval` computes the rates to report.

    Args:
      show: called with the pictures and waveforms of the first batch, if the objective has some (not of a mixture).
      show_transcripts: called with the transcript of one utterance, always the same, and what was recognised, if the
        objective has a greedy decoding.

    Returns:
      Weighted means; empty without a dev split, None if `stop_requested`, called before every batch, returns a value.
    """
    if not isinstance(source, MixtureSource):
        if source.dev_plan is None:
            return {}
        return _means(trainer, params, source, mesh, stop_requested, show, show_transcripts)
    figures, losses, quotas = {}, [], []
    for (name, part), quota in zip(source.parts.items(), source.plan.quotas, strict=True):
        of_stream = validate(trainer, params, part, mesh, stop_requested, show_transcripts=show_transcripts)
        if of_stream is None:
            return None
        figures |= {f"{name}_{figure}": value for figure, value in of_stream.items()}
        if "loss" in of_stream:
            losses.append(of_stream["loss"] * quota)
            quotas.append(quota)
    return figures | ({"loss": sum(losses) / sum(quotas)} if losses else {})


def _means(
    trainer: Trainer,
    params: Params,
    source: BatchSource,
    mesh: Mesh,
    stop_requested: Callable[[], Any],
    show: Callable[[dict[str, np.ndarray]], None] | None,
    show_transcripts: Callable[[str, str], None] | None,
) -> dict[str, float] | None:
    totals: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    references, hypotheses = [], []
    for batch in source.dev_batches():
        if stop_requested():
            return None
        sharded = meshes.shard_batch(mesh, batch)
        if show and trainer.pictures is not None:
            show(jax.device_get(trainer.pictures(params, sharded)))
            show = None
        for name, (total, weight) in jax.device_get(trainer.evaluate(params, sharded)).items():
            totals[name] += float(total)
            weights[name] += float(weight)
        if trainer.greedy_decode is not None and "audio" in batch and batch["tokens"].shape[1]:
            decoded = collapse(jax.device_get(trainer.greedy_decode(params, sharded)))
            labels = {name: sharded[name] for name in ("weight", "tokens", "token_length")}
            labels = multihost_utils.process_allgather(labels, tiled=True)  # all rows, in the order of `decoded`
            for row in np.flatnonzero(labels["weight"]):
                references.append(source.tokenizer.decode(labels["tokens"][row, : labels["token_length"][row]]))
                hypotheses.append(source.tokenizer.decode(decoded[row]))
    figures = means({name: (totals[name], weights[name]) for name in totals})
    if references:
        figures["wer"] = jiwer.wer(references, hypotheses)
        figures["cer"] = jiwer.cer(references, hypotheses)
        if show_transcripts:
            middle = len(references) // 2  # of a usual length, as rows come by length
            show_transcripts(references[middle], hypotheses[middle])
    return figures
