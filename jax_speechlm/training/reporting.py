"""Reports a run's progress: a progress bar, `metrics.jsonl` and TensorBoard, from the same numbers."""

import json
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_pipelines.audio.wav import to_wav
from jax_speechlm.objectives.base import Metrics
from jax_speechlm.training.logs import METRICS, drop_later
from jax_speechlm.training.pictures import to_png, trimmed
from jax_speechlm.training.state import STEP_METRICS

# Without a module of this name, TensorBoard imports TensorFlow (10 s) to open a file.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: E402
from tensorboard.plugins.scalar.summary_v2 import scalar_pb  # noqa: E402
from tensorboard.plugins.text.summary_v2 import text_pb  # noqa: E402
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: E402


class BatchSize(NamedTuple):
    """The size of a batch, without and with padding, in its unit: "audio_seconds", or "tokens" for text.

    `length` is of a padded row, in samples or tokens; `rows` includes filler rows.
    """

    unit: str
    real: float
    padded: float
    length: int
    rows: int

    @classmethod
    def of(cls, batch: Mapping[str, np.ndarray], num_readers: int, sample_rate: int) -> "BatchSize":
        """Computes the size of a global batch from the rows of one of the processes that read different rows.

        Rows of audio may be packed.
        """
        if "audio" in batch:
            rows, length = batch["audio"].shape
            unit, per_unit, real = "audio_seconds", sample_rate, int(batch["audio_length"].sum())
        else:
            rows, length = batch["tokens"].shape
            unit, per_unit, real = "tokens", 1, int((batch["segment"] > 0).sum())
        rows *= num_readers
        return cls(unit, real * num_readers / per_unit, rows * length / per_unit, length, rows)

    def describe(self) -> str:
        """Describes the shape, such as "2 rows of 24.0 s"."""
        each = self.padded / self.rows
        return f"{self.rows} rows of {f'{each:.1f} s' if self.unit == 'audio_seconds' else f'{each:.0f} tokens'}"


class IntervalMetrics:
    """Aggregates one logging interval: metrics, amount of data, FLOPs and times.

    Metrics stay on the device until a later step has been dispatched, so that reading them does not stall the device.
    """

    def __init__(self, peak_flops: float):
        """`peak_flops` is the FLOP/s of all devices together, the reference of MFU."""
        self._peak_flops = peak_flops
        self._reset()

    def _reset(self) -> None:
        self._totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._began = time.perf_counter()
        self._real: Counter[str] = Counter()  # by unit, because a mixture may have both
        self._padded: Counter[str] = Counter()
        self._steps: Counter[str] = Counter()
        self._waited = self._flops = self._useful_flops = 0.0

    @contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the time in this context as waiting for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Excludes the time in this context, such as validating or saving, from the interval."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def add(self, metrics: Metrics, stream: str = "") -> dict[str, float]:
        """Reads one step's metrics from the device, adds them to the interval and returns their means.

        In a mixture, `stream` prefixes their names, and `loss` is averaged over steps instead of targets.
        """
        values = jax.device_get(metrics)
        named = values
        if stream:
            named = {name if name in STEP_METRICS else f"{stream}_{name}": pair for name, pair in values.items()}
            total, weight = values["loss"]
            named["loss"] = total / max(weight, 1e-9), float(weight > 0)  # weight 1 per step, not per target
        for name, (total, weight) in named.items():
            self._totals[name][0] += float(total)
            self._totals[name][1] += float(weight)
        return means(values)

    def count(self, extent: BatchSize, flops: float) -> None:
        """Adds a batch, and the FLOPs of its training step at its padded shape."""
        self._real[extent.unit] += extent.real
        self._padded[extent.unit] += extent.padded
        self._steps[extent.unit] += 1
        self._flops += flops
        self._useful_flops += flops * extent.real / extent.padded

    def take(self) -> dict[str, float]:
        """Returns the interval's metrics and starts the next interval."""
        seconds = time.perf_counter() - self._began
        figures = means(self._totals) | {f"{unit}_per_second": real / seconds for unit, real in self._real.items()}
        padding = {unit: 1 - real / self._padded[unit] for unit, real in self._real.items()}
        figures |= {
            "input_wait_share": self._waited / seconds,
            "padding_share": sum(padding[unit] * count for unit, count in self._steps.items()) / self._steps.total(),
            "mfu": self._flops / seconds / self._peak_flops,
            "useful_mfu": self._useful_flops / seconds / self._peak_flops,
        }
        self._reset()
        return figures


def means(metrics) -> dict[str, float]:
    """Computes the means of (sum, weight) pairs; metrics with weight 0 are left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in metrics.items() if float(weight) > 0}


class Reporter:
    """Shows progress and writes logs to a folder. Only process 0 of a multi-host run writes."""

    def __init__(self, logs: Path, title: str, start_step: int, num_steps: int):
        """Continues the logs of earlier starts, without the lines of steps after `start_step`, which are repeated."""
        self._active = jax.process_index() == 0
        self.console = Console(quiet=not self._active, highlight=False, soft_wrap=True)
        self._num_steps = num_steps
        self._began = time.time()
        self._start_step = start_step
        self._progress = Progress(
            TextColumn(f"[bold]{title}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=num_steps, completed=start_step, status="compiling")
        if self._active:
            drop_later(logs / METRICS, start_step)
            self._lines = (logs / METRICS).open("a", buffering=1)
            self._tensorboard = EventFileWriter(str(logs / "tensorboard"))
            # Makes TensorBoard drop the events of earlier files from this step on.
            started = SessionLog(status=SessionLog.SessionStatus.START)
            self._tensorboard.add_event(Event(wall_time=time.time(), step=start_step + 1, session_log=started))

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._progress.stop()
        if self._active:
            self._lines.close()
            self._tensorboard.close()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` completed steps."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, part: str, figures: dict[str, float]) -> None:
        """Logs the metrics of one part ("train", "dev") after `step` steps, and prints the important ones."""
        if not self._active:
            return
        if part == "train":
            done = max(1, step - self._start_step)
            figures = figures | {"eta_seconds": (time.time() - self._began) / done * (self._num_steps - step)}
        now = time.time()
        self._lines.write(json.dumps({"step": step, "part": part, "time": now} | figures) + "\n")
        for name, value in figures.items():
            self._tensorboard.add_event(Event(wall_time=now, step=step, summary=scalar_pb(f"{part}/{name}", value)))
        self._tensorboard.flush()
        shown = [(name, form) for key, form in _SHOWN.items() for name in figures if _is_shown_as(name, key)]
        status = "  ".join(f"{name.replace('_', ' ')} {figures[name]:{form}}" for name, form in shown)
        self._progress.update(self._task, status=status)
        if status and (part != "train" or not self.console.is_terminal):
            left = f"  {_duration(figures['eta_seconds'])} left" if figures.get("eta_seconds") else ""
            self.console.print(f"step {step:>6}  {part:<5}  {status}{left}")

    def show(self, step: int, sample_rate: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Logs pictures and waveforms of a validation after `step` steps to TensorBoard (see `Objective.pictures`)."""
        if not self._active:
            return
        for name, values in pictures.items():
            values = trimmed(values)
            shown = {"audio": _audio(values, sample_rate)} if values.ndim == 1 else {"image": _image(values)}
            summary = Summary(value=[Summary.Value(tag=f"dev/{name}", **shown)])
            self._tensorboard.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._tensorboard.flush()

    def show_transcripts(self, step: int, reference: str, hypothesis: str) -> None:
        """Prints the reference and hypothesis of one utterance of a validation, and writes both to TensorBoard."""
        if not self._active:
            return
        self.console.print(f"{'':>11}  reference   {escape(reference)}\n{'':>11}  hypothesis  {escape(hypothesis)}")
        text = f"    reference   {reference}\n    hypothesis  {hypothesis}"  # indented, as Markdown has code
        self._tensorboard.add_event(Event(wall_time=time.time(), step=step, summary=text_pb("dev/transcript", text)))
        self._tensorboard.flush()

    def say(self, text: str) -> None:
        """Prints a message above the bar."""
        self.console.print(text)


_SHOWN = {
    "seconds_to_first_step": ".1f",
    "loss": ".3f",
    "wer": ".1%",
    "masked_accuracy": ".1%",
    "accuracy": ".1%",
    "learning_rate": ".1e",
    "grad_norm": ".2f",
    "audio_seconds_per_second": ".0f",
    "tokens_per_second": ".0f",
    "padding_share": ".1%",
    "mfu": ".1%",
}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _image(values: np.ndarray) -> Summary.Image:
    height, width = values.shape
    return Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=to_png(values))


def _audio(values: np.ndarray, sample_rate: int) -> Summary.Audio:
    return Summary.Audio(
        sample_rate=sample_rate,
        num_channels=1,
        length_frames=len(values),
        encoded_audio_string=to_wav(np.nan_to_num(values), sample_rate),
        content_type="audio/wav",
    )


def _is_shown_as(name: str, key: str) -> bool:
    """Returns whether a metric is `key`, or the same of a mixture's stream for loss and error rate."""
    return name == key or (key in ("loss", "wer") and name.endswith(f"_{key}"))
