"""Warnings before a run: data that are left out, and settings without the intended effect."""

from collections.abc import Iterator

from data_pipelines.batching.packing import TextPlan
from data_pipelines.batching.plan import SpeechPlan, hours
from data_pipelines.batching.rows import RowPlan
from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import sample_texts
from data_pipelines.tokenizers.base import find_unknown
from jax_speechlm.optim.optimizers import WSD, Optimizer
from jax_speechlm.recipes.experiment import Data, Experiment, Mixture, Speech, WordPairs
from jax_speechlm.training.source import BatchSource, SpeechSource

NOTABLE_SHARE = 0.1
"""Smallest share of the audio, or of the tokens, whose omission causes a warning."""

_SAMPLED_CHARACTERS = 200_000  # of transcripts


def concerns(experiment: Experiment, source: BatchSource) -> tuple[str, ...]:
    """Returns warnings about a run's settings and data; raises `DataError` above `data.max_dropped`."""
    warnings = list(_of_optimizer(experiment.optimizer, experiment.num_steps))
    if experiment.optimizer.accumulate > 1 and experiment.objective.couples_rows:
        warnings.append(
            f"optimizer.accumulate is {experiment.optimizer.accumulate}: {experiment.objective.kind} takes "
            "statistics of codes over each micro-batch instead of the whole batch, so the result is not that of "
            "accumulate 1"
        )
    if isinstance(experiment.data, Mixture):
        parts = zip(experiment.data.streams, source.parts.values(), strict=True)
        for number, (stream, part) in enumerate(parts):
            warnings += _of_data(stream.data, part, f"--data.streams.{number}.data")
            warnings += _of_texts(part)
    else:
        warnings += _of_data(experiment.data, source, "--data")
        warnings += _of_texts(source)
    warnings += _of_windows(experiment, source)
    return tuple(warnings)


def _of_optimizer(optimizer: Optimizer, num_steps: int) -> Iterator[str]:
    schedule = optimizer.schedule
    last = float(schedule.build(num_steps)(num_steps - 1))
    if schedule.warmup_steps > num_steps:
        yield (
            f"optimizer.schedule.warmup_steps is {schedule.warmup_steps:,} and num_steps {num_steps:,}: the learning "
            f"rate ends at {last:.3g} and never reaches its peak of {schedule.peak:.3g}; lower "
            "--optimizer.schedule.warmup-steps or raise --num-steps"
        )
    elif isinstance(schedule, WSD) and schedule.warmup_steps + int(schedule.decay_share * num_steps) > num_steps:
        yield (
            f"warm-up ({schedule.warmup_steps:,} steps) and decay ({schedule.decay_share:.0%} of the run) do not fit "
            f"into {num_steps:,} steps: the learning rate ends at {last:.3g} instead of 0; lower "
            "--optimizer.schedule.warmup-steps or raise --num-steps"
        )
    for number, group in enumerate(optimizer.groups):
        if group.start_step >= num_steps:
            yield (
                f"optimizer.groups: {group.prefix} begins to learn at step {group.start_step:,}, and the run has "
                f"{num_steps:,}: it never learns; lower --optimizer.groups.{number}.start-step"
            )


def _of_data(data: Data, source: BatchSource, option: str) -> Iterator[str]:
    """Yields warnings about the data of a run or of a stream; `option` is the prefix of its command-line options."""
    plans = {"training": source.plan} | ({"validation": source.dev_plan} if source.dev_plan is not None else {})
    if source.dev_plan is None:
        has_dev_sets = not isinstance(data, WordPairs)
        remedy = f"name a set that has a dev split with {option}.dev-sets" if has_dev_sets else f"set {option}.held-out"
        yield (f"nothing validates {', '.join(data.sets)}, so that no checkpoint is known to be the best: {remedy}")
    for use, plan in plans.items():
        if isinstance(plan, SpeechPlan) and isinstance(data, Speech):
            share = plan.dropped_share
            text = f"{use} leaves out {share:.0%} of its audio: {_drops(data, plan, option)}"
            if share > data.max_dropped:
                raise DataError(f"{text}; to go on all the same, set {option}.max-dropped {min(1, share + 0.01):.2f}")
            if share > NOTABLE_SHARE:
                yield text
        elif isinstance(plan, TextPlan) and plan.cut_off_share > NOTABLE_SHARE:
            yield (
                f"{use} leaves out {plan.cut_off_share:.0%} of the tokens, in {plan.num_cut:,} documents that are cut "
                f"off after {plan.context} positions: raise {option}.context to keep them"
            )


def _of_texts(source: BatchSource) -> Iterator[str]:
    """Yields warnings about transcripts with characters that the tokenizer does not know, in a sample of them."""
    if not isinstance(source, SpeechSource) or source.tokenizer is None or source.unit_texts[0] is not None:
        return
    for use, index in (("training", source.train), ("validation", source.dev)):
        if index is not None:
            texts = sample_texts(index, _SAMPLED_CHARACTERS, source.text_column)
            if (lost := find_unknown(source.tokenizer, texts)).characters:
                yield f"{use}: {lost}"


def _of_windows(experiment: Experiment, source: BatchSource) -> Iterator[str]:
    """Yields a warning about utterances whose end the front end cuts off."""
    seconds = getattr(experiment.frontend.mel, "window_seconds", None)
    if seconds is None or not isinstance(source, SpeechSource) or experiment.data.max_seconds <= seconds:
        return
    taken, kept = (limit * experiment.sample_rate for limit in (seconds, experiment.data.max_seconds))
    lengths = source.train.num_samples
    if count := int(((lengths > taken) & (lengths <= kept)).sum()):
        yield (
            f"the front end takes {seconds} s of an utterance, and {count:,} are longer, whose transcripts go on after "
            f"it: set --data.max-seconds {seconds}"
        )


def _drops(data: Speech, plan: SpeechPlan, option: str) -> str:
    """Describes the utterances that a plan leaves out, the reasons, and the options that keep them."""
    longest, limit = data.max_seconds, "max-seconds"
    if isinstance(plan, RowPlan) and max(data.row_seconds, default=longest) < longest:
        longest, limit = max(data.row_seconds), "row-seconds"
    reasons = {
        "too_long": f"longer than {longest:g} s (raise {option}.{limit} to keep them)",
        "too_short": f"shorter than {data.min_seconds:g} s (lower {option}.min-seconds to keep them)",
        "no_tokens": "without a transcript (prepare them with one, or leave their sets out)",
    }
    return "; ".join(
        f"{count:,} utterances, {hours(plan.dropped_seconds[reason])}, {reasons.get(reason, reason)}"
        for reason, count in plan.dropped.items()
        if plan.dropped_seconds[reason]
    )
