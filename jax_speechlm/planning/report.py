"""Reports of a plan: tables, JSON, and an HTML page with plots."""

import html
import json
import math
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table

from jax_speechlm.parallel.chips import GIB
from jax_speechlm.planning import links
from jax_speechlm.planning.ahead_of_time import Step
from jax_speechlm.planning.plan import RunPlan, describe_shape, fits
from jax_speechlm.planning.roofline import Estimate

PARTS = ("params", "optimizer", "batch", "activations", "temporary", "program")
_COLORS = ("#4269d0", "#6cc5b0", "#efb118", "#ff725c", "#9c6b4e", "#9498a0")
BEST = "best: a bound no step goes below; compute, memory and links at their peaks, all at the same time"
ESTIMATE = (
    "estimate: the compiled program in its order, with the compiler's cycles and the collectives that nothing hides"
)

_RESOURCES = (("compute", "#4269d0"), ("memory", "#efb118"), ("links", "#ff725c"))


def parts(step: Step) -> dict[str, float]:
    """Returns the bytes of each part of a device's memory; `temporary` excludes the activations."""
    memory = step.memory
    activations = min(memory.activations, memory.temporary)
    values = (
        memory.params,
        memory.optimizer,
        max(memory.batch, 0.0),
        activations,
        memory.temporary - activations,
        memory.program,
    )
    return dict(zip(PARTS, values, strict=True))


def verdict(plan: RunPlan, price: float | None) -> list[str]:
    """Returns the conclusions of a plan, a sentence a line."""
    spec, step = plan.topology.spec, plan.fullest
    shape = describe_shape(step.shape, plan.load)
    need, have = step.memory.total / GIB, spec.usable / GIB
    lines = []
    if plan.fits:
        lines.append(f"Fits: {need:.1f} of {have:.1f} usable GiB a chip at {shape}.")
    elif math.isinf(need):
        lines.append(f"Does not fit: the compiler ran out of memory at {shape}.")
    else:
        lines.append(
            f"Does not fit: {shape} needs {need:.1f} GiB a chip, of which {have:.1f} are usable. {_remedy(plan)}"
        )
    if plan.rate:
        rate, unit = plan.rate, "tokens" if plan.load.unit == "tokens" else "audio-hours"
        amount = f"{rate.per_hour:,.0f} {unit}" if unit == "audio-hours" else f"{rate.per_hour / 1e9:,.2f} G {unit}"
        lines.append(
            f"Estimate: {rate.step_seconds * 1e3:,.1f} ms a step, {rate.mfu:.0%} MFU, {amount} an hour; "
            f"at best {rate.best_seconds * 1e3:,.1f} ms a step."
        )
        if price is not None:
            cost = plan.topology.num_devices * price / rate.per_hour
            per, what = (1000, "1,000 audio-hours") if unit == "audio-hours" else (1e9, "1 G tokens")
            lines.append(f"At {price:g} a chip-hour: {cost * per:,.2f} for {what}, by the estimate.")
    if plan.load.assumed:
        lines.append(f"Assumed: {plan.load.assumed}.")
    for step in plan.steps:
        if step.costs and step.costs.unknown_loops:
            lines.append(f"Loops of unknown length, counted once: {', '.join(step.costs.unknown_loops)}.")
        if step.costs and step.costs.unknown_calls:
            lines.append(f"Kernels of unknown arithmetic: {', '.join(name for name, _ in step.costs.unknown_calls)}.")
    return list(dict.fromkeys(lines))


def _remedy(plan: RunPlan) -> str:
    memory, room = plan.fullest.memory, plan.topology.spec.usable
    if memory.params + memory.optimizer > 0.8 * room:
        return "Parameters and optimizer alone fill it: raise mesh.fsdp, or mesh.tensor."
    size = " and ".join(f"data.{name}" for name in plan.experiment.data.sizes)
    remat = "" if _remat(plan) in ("full", "") else "model.remat full, or "
    return f"Set {remat}a smaller {size} (optimizer.accumulate keeps the batch), or let --fit search."


def _remat(plan: RunPlan) -> str:
    """Returns the model's rematerialisation policy; "" if it has none."""
    return getattr(plan.experiment.model, "remat", "")


def heading(plan: RunPlan) -> str:
    """Returns a one-line description of the plan."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1 device"
    slices = f"{plan.topology.slices} x " if plan.topology.slices > 1 else ""
    experiment = plan.experiment
    return (
        f"{experiment.objective.kind}, {plan.params / 1e6:,.1f} M parameters, on {slices}{plan.topology.name} "
        f"({plan.topology.num_devices} chips: {mesh})" + (f", remat {_remat(plan)}" if _remat(plan) else "")
    )


def show(plan: RunPlan, price: float | None = None, console: Console | None = None) -> None:
    """Prints a plan."""
    console = console or Console(highlight=False)
    memory = Table(title="GiB of memory per chip", title_justify="left")
    times = Table(title="One step, milliseconds", caption=f"{BEST}\n{ESTIMATE}", title_justify="left")
    times.caption_justify = "left"
    exchanges = Table(title="Collectives of one step, per chip", title_justify="left")
    for table, columns in (
        (memory, ("shape", *PARTS, "total", "")),
        (
            times,
            ("shape", "TFLOP", "GB moved", "compute", "memory", "links", "best", "estimate", "MFU", "compiled in s"),
        ),
        (exchanges, ("shape", "collective", "along", "devices", "times", "MB sent", "ms")),
    ):
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if not index or column in ("collective", "along") else "right")
    for step, estimate in zip(plan.steps, plan.estimates, strict=True):
        shape, ok = describe_shape(step.shape, plan.load), fits(step, plan.topology)
        if step.costs:
            sizes = [f"{value / GIB:.2f}" for value in parts(step).values()]
        else:
            sizes = [f"{step.memory.params / GIB:.2f}", f"{step.memory.optimizer / GIB:.2f}", "", "", "", ""]
        memory.add_row(shape, *sizes, f"{step.memory.total / GIB:.2f}", "fits" if ok else "[red]does not fit")
        if estimate is None:
            continue
        times.add_row(
            shape,
            f"{step.costs.flops / 1e12:,.1f}",
            f"{step.costs.bytes / 1e9:,.1f}",
            *(f"{seconds * 1e3:.2f}" for seconds in (estimate.compute, estimate.memory, sum(estimate.links.values()))),
            f"{estimate.best * 1e3:.2f} ({estimate.bound})",
            f"{estimate.seconds * 1e3:.2f}",
            f"{estimate.mfu:.0%}",
            f"{step.compile_seconds:.0f}",
        )
    largest = plan.steps[-1]
    if largest.costs:
        for collective in largest.costs.collectives[:12]:
            seconds = links.seconds(collective, plan.topology)
            exchanges.add_row(
                describe_shape(largest.shape, plan.load),
                collective.kind,
                collective.axes,
                str(collective.size),
                f"{collective.times:g}",
                f"{collective.sent / 1e6:,.1f}",
                f"{seconds * 1e3:.2f}",
            )
    tables = [memory] + [table for table in (times, exchanges) if table.row_count]
    console.print(heading(plan), Group(*tables), *verdict(plan, price), sep="\n")


def as_json(plan: RunPlan, price: float | None = None) -> str:
    """Returns all figures of a plan as JSON."""
    steps = []
    for step, estimate in zip(plan.steps, plan.estimates, strict=True):
        steps.append(
            {
                "batch": step.shape.__dict__,
                "fits": fits(step, plan.topology),
                "memory_bytes": step.memory._asdict(),
                "flops": step.costs and step.costs.flops,
                "bytes": step.costs and step.costs.bytes,
                "collectives": [collective._asdict() for collective in step.costs.collectives] if step.costs else [],
                "model_flops": step.model_flops,
                "estimate": estimate and estimate._asdict(),
                "compile_seconds": step.compile_seconds,
            }
        )
    return json.dumps(
        {
            "topology": plan.topology.name,
            "slices": plan.topology.slices,
            "chips": plan.topology.num_devices,
            "hbm_bytes": plan.topology.spec.hbm,
            "usable_bytes": plan.topology.spec.usable,
            "mesh": plan.mesh,
            "params": plan.params,
            "fits": plan.fits,
            "assumed": plan.load.assumed,
            "rate": plan.rate and plan.rate._asdict(),
            "price_per_chip_hour": price,
            "steps": steps,
            "experiment": plan.experiment.model_dump(mode="json"),
        },
        indent=1,
    )


def as_html(plan: RunPlan, price: float | None = None) -> str:
    """Returns a self-contained page with the plan's plots, without scripts."""
    room = plan.topology.spec.usable
    widest = max([room, *(step.memory.total for step in plan.steps if math.isfinite(step.memory.total))])
    rows = []
    for step in plan.steps:
        if step.costs:
            bars = [(name, value, color) for (name, value), color in zip(parts(step).items(), _COLORS, strict=True)]
        else:
            bars = [("needed", min(step.memory.total, widest), "#d03b3b")]
        label = f"{describe_shape(step.shape, plan.load)}"
        rows.append(_bar(label, bars, widest, GIB, "GiB", f"{step.memory.total / GIB:.1f} GiB", room / widest))
    slowest = max((max(estimate.seconds, _serial(estimate)) for estimate in plan.estimates if estimate), default=1.0)
    times = []
    for step, estimate in zip(plan.steps, plan.estimates, strict=True):
        if estimate:
            values = (estimate.compute, estimate.memory, sum(estimate.links.values()))
            bars = [(name, value, color) for (name, color), value in zip(_RESOURCES, values, strict=True)]
            note = (
                f"estimate {estimate.seconds * 1e3:.1f} ms, {estimate.mfu:.0%} MFU; best {estimate.best * 1e3:.1f} ms"
            )
            label, mark = describe_shape(step.shape, plan.load), estimate.seconds / slowest
            times.append(_bar(label, bars, slowest, 1e-3, "ms", note, mark))
    legend = [_legend(zip(PARTS, _COLORS, strict=True)), _legend(_RESOURCES)]
    conclusions = "".join(f"<p>{html.escape(line)}</p>" for line in verdict(plan, price))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(heading(plan))}</title>
<style>body{{font:15px system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}}
.row{{display:grid;grid-template-columns:9rem 1fr 14rem;gap:.7rem;align-items:center;margin:.25rem 0}}
.bar{{display:flex;height:1.1rem;background:#f0f0f0;position:relative}}.bar i{{display:block;height:100%}}
.bar b{{position:absolute;top:-3px;bottom:-3px;border-left:2px solid #d03b3b}}
.key span{{display:inline-block;width:.8rem;height:.8rem;margin:0 .3rem 0 1rem}}</style>
<h1>{html.escape(heading(plan))}</h1>{conclusions}
<h2>Memory per chip</h2><div class="key">{legend[0]}<span style="background:#d03b3b;width:2px"></span>capacity</div>
{"".join(rows)}
<h2>One step, resource by resource</h2><div class="key">{legend[1]}</div>{"".join(times) or "<p>Nothing fits.</p>"}
<p>{BEST} (the longest part).</p><p>{ESTIMATE} (the red line).</p></html>
"""


def _serial(estimate: Estimate) -> float:
    return estimate.compute + estimate.memory + sum(estimate.links.values())


def _legend(pairs) -> str:
    return "".join(f'<span style="background:{color}"></span>{html.escape(name)}' for name, color in pairs)


def _bar(label, bars, widest, unit, unit_name, note, mark=None) -> str:
    parts = "".join(
        f'<i style="width:{100 * value / widest:.2f}%;background:{color}" '
        f'title="{html.escape(name)}: {value / unit:.2f} {unit_name}"></i>'
        for name, value, color in bars
    )
    line = "" if mark is None else f'<b style="left:{100 * mark:.2f}%"></b>'
    return (
        f'<div class="row"><div>{html.escape(label)}</div><div class="bar">{parts}{line}</div><div>{note}</div></div>'
    )


def save(plan: RunPlan, folder: Path, price: float | None = None) -> None:
    """Writes `plan.json` and `plan.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(as_json(plan, price))
    (folder / "plan.html").write_text(as_html(plan, price))
