"""How a plan is shown: tables, what they rest on, and one sentence where nothing fits."""

from __future__ import annotations

import math
from typing import Any

from flows.cli import console, results
from vitcore.budget import Budget
from vitcore.data.maintenance.findings import in_bytes
from vitcore.duration import parse
from vitcore.estimate.hardware import USABLE
from vitcore.estimate.plan import Planned, Row


def show(planned: Planned, *, price: float | None, budget: Budget | None, json: bool) -> int:
    """Print a plan.

    Args:
        planned: the plan.
        price: of a device for an hour; None: no cost is shown.
        budget: what a size must stay within to be good.
        json: print JSON instead.
    Returns:
        Exit code 0 if one of the sizes fits, else 1.
    """
    complaint = _complaint(planned, budget)
    if json:
        console.as_json(_plain(planned, price, budget))
    else:
        _header(planned)
        _times(planned, price, budget)
        _memory(planned)
        _data(planned)
        _grounds(planned)
    if complaint is not None:
        console.fail(complaint)
        return 1
    return 0


def _header(planned: Planned) -> None:
    size, lengths = planned.size, planned.lengths
    console.heading(f"{planned.recipe} on {planned.dataset}: {planned.hardware.name}, {planned.precision.name}")
    frozen = "" if size.trained == size.parameters else f", {size.trained:,} of them trained"
    per_sample = planned.flops_per_sample
    console.fields(
        {
            "parameters": f"{size.parameters:,}{frozen} (computed)",
            "FLOPs": f"{per_sample / 1e9:,.4g} G a sample, {per_sample * planned.batch_size / 1e12:,.4g} T a step of "
            f"{planned.batch_size:,} (computed)",
            "length": f"{lengths.steps:,} steps ({planned.duration}), {lengths.validations} validations of "
            f"{lengths.images:,} photographs (computed)",
        }
    )


def _times(planned: Planned, price: float | None, budget: Budget | None) -> None:
    """Where the hours go."""
    unit = "GPU" if planned.hardware.cuda else "worker"
    columns = ["nodes", f"{unit}s", f"samples/{unit}", "step", "all-reduce", "not hidden", "images/s", "hours"]
    columns += [f"{unit}-hours", *(["cost"] if price is not None else []), "limit", "fits"]
    rows = [
        [
            str(row.nodes),
            str(row.devices),
            f"{row.slots:,}",
            _seconds(row.step.total),
            _seconds(row.step.all_reduce),
            _seconds(row.step.exposed),
            f"{row.images_per_s:,.0f}",
            f"{row.hours:,.3g}",
            f"{row.device_hours:,.3g}",
            *([f"{row.device_hours * price:,.2f}"] if price is not None else []),
            row.step.limit,
            _fits(row, budget),
        ]
        for row in planned.rows
    ]
    console.table(columns, rows, title="time (predicted)")


def _memory(planned: Planned) -> None:
    parts = ("weights", "gradients", "optimizer", "ema", "momentum", "teacher", "activations", "peak")
    used = [part for part in parts if any(getattr(row.memory, part) for row in planned.rows)]
    unit = "GPU" if planned.hardware.cuda else "worker"
    console.table(
        ["nodes", *used, "with checkpointing", "with FSDP"],
        [
            [
                str(row.nodes),
                *(in_bytes(getattr(row.memory, part)) for part in used),
                in_bytes(row.checkpointed),
                in_bytes(row.sharded),
            ]
            for row in planned.rows
        ],
        title=f"memory of a {unit} of {in_bytes(planned.hardware.memory)} (computed)",
    )
    for row in planned.rows:
        if row.advice is not None:
            console.write(f"out of memory on {_size(row)}: {row.advice}")


def _data(planned: Planned) -> None:
    console.table(
        ("nodes", "needed images/s", "needed MB/s", "available images/s"),
        [
            [
                str(row.nodes),
                f"{row.needed_images_per_s:,.0f}",
                f"{row.needed_bytes_per_s / 1e6:,.1f}",
                f"{row.available_images_per_s:,.0f}",
            ]
            for row in planned.rows
        ],
        title="photographs (needed: predicted; available: measured here, times the workers)",
    )
    threads = planned.loading.threads
    for row in planned.rows:
        if row.step.limit == "data":
            needed = math.ceil(threads * row.needed_images_per_s / row.available_images_per_s)
            console.write(
                f"photographs limit {_size(row)}: a worker needs about {needed:,} loader threads with a core each "
                "(--compute.loader-workers), or smaller photographs (vit ingest --resize)"
            )


def _grounds(planned: Planned) -> None:
    """What was measured, and what is assumed."""
    hardware, probe, loading = planned.hardware, planned.probe, planned.loading
    peak = planned.hardware.peak(planned.precision)
    lines = [
        f"measured: a worker's loader brings {loading.images_per_s:,.0f} images/s here by {loading.threads} threads"
    ]
    if probe is not None:
        lines.append(
            f"measured: {probe.steps} steps of {probe.batch_size} here take {_seconds(probe.step_s)} each, "
            f"{planned.rate / 1e12:.3g} TFLOP/s, {planned.rate / peak:.0%} of the peak; a validation "
            f"{_seconds(probe.validate_s)} a photograph, a checkpoint {_seconds(probe.checkpoint_s)}"
        )
    else:
        lines.append(
            f"assumed: a step computes at {planned.rate / peak:.0%} of the peak (--mfu); no steps were taken: "
            f"{planned.why_no_probe}"
        )
    lines.append(f"hardware: {peak / 1e12:,.4g} TFLOP/s in {planned.precision.name}; {hardware.source}")
    if hardware.cuda:
        lines.append(f"assumed: {USABLE:.0%} of a GPU's memory can be filled; without torch.compile, which needs less")
    if any(row.nodes > 1 for row in planned.rows):
        lines.append(f"assumed: nodes reach each other by {planned.network / 1e9:g} GB/s (--network)")
    if planned.captions is not None:
        lines.append(f"measured: captions of up to {planned.captions.tokens} tokens, {planned.captions.each:.3g} each")
    for line in lines:
        console.write(line)


def _complaint(planned: Planned, budget: Budget | None) -> str | None:
    """One sentence where none of the sizes is good."""
    if all(not row.fits for row in planned.rows):
        row = planned.rows[-1]
        return (
            f"out of memory: {in_bytes(row.peak)} on a {planned.hardware.name} of "
            f"{in_bytes(planned.hardware.memory)}; {row.advice}"
        )
    if budget is None or any(row.fits and budget.allows(row.hours, row.devices) for row in planned.rows):
        return None
    best = min((row for row in planned.rows if row.fits), key=lambda row: budget.spent(row.hours, row.devices))
    spent = budget.spent(best.hours, best.devices)
    whole = parse(planned.duration)
    share = budget.hours / spent
    return (
        f"it does not fit in the budget of {budget}: it takes {spent:,.3g} on {_size(best)}; shorten train.duration "
        f'from "{whole}" to about "{whole.value * share:.3g} {whole.unit}", or take a smaller model or image'
    )


def _fits(row: Row, budget: Budget | None) -> str:
    if not row.fits:
        return "out of memory"
    return "yes" if budget is None or budget.allows(row.hours, row.devices) else "over budget"


def _size(row: Row) -> str:
    return f"{row.nodes} node{'s' * (row.nodes > 1)}"


def _seconds(value: float) -> str:
    return f"{value:,.3g} s" if value >= 1 else f"{value * 1000:,.3g} ms"


def _plain(planned: Planned, price: float | None, budget: Budget | None) -> dict[str, Any]:
    """The plan as JSON: every number under what it is."""
    tree: dict[str, Any] = results.plain(planned)
    rows = []
    for row, content in zip(planned.rows, tree.pop("rows"), strict=True):
        computed = ("flops", "memory", "checkpointed", "sharded", "peak", "fits", "advice")
        predicted: dict[str, Any] = {
            "step_s": row.step.total,
            "limit": row.step.limit,
            "hours": row.hours,
            "device_hours": row.device_hours,
        }
        predicted |= {name: content[name] for name in content if name not in (*computed, "nodes", "devices", "slots")}
        if price is not None:
            predicted["cost"] = row.device_hours * price
        if budget is not None:
            predicted["within_budget"] = budget.allows(row.hours, row.devices)
        rows.append(
            {
                **{name: content[name] for name in ("nodes", "devices", "slots")},
                "computed": {name: content[name] for name in computed},
                "predicted": predicted,
            }
        )
    return {
        **{name: tree[name] for name in ("recipe", "dataset", "batch_size", "duration")},
        "precision": planned.precision.name,
        "hardware": tree["hardware"],
        "measured": {name: tree[name] for name in ("loading", "captions", "probe")},
        "computed": {"size": tree["size"], "lengths": tree["lengths"], "flops_per_sample": planned.flops_per_sample},
        "assumed": {
            "flops_per_s": None if planned.probe is not None else planned.rate,
            "why_no_probe": tree["why_no_probe"],
            "network_bytes_per_s": tree["network"],
            "usable_memory": USABLE,
            "teacher_counted": tree["teacher"],
        },
        "rows": rows,
    }
