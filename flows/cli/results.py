"""How the frozen values that flows return are shown: as JSON, or as names and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.cli import console

if TYPE_CHECKING:
    from tasks.on_mlflow.registry import ModelVersion
    from tasks.stages import StagePlan


def plain(value: Any) -> Any:
    """A pydantic model or dataclass, or a sequence of them, as a JSON value."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def show(value: Any, *, json: bool) -> int:
    """Print one frozen value; returns exit code 0."""
    content = plain(value)
    if json:
        console.as_json(content)
    else:
        console.fields({name: item for name, item in content.items() if item not in (None, [], {})})
    return 0


def show_trained(product: ModelVersion | dict[str, float], *, json: bool) -> int:
    """Print what a training flow returned: a registered version, or how well one batch was memorised."""
    if json or isinstance(product, dict):
        return show(product, json=json)
    console.done(f"registered {product.uri}")
    console.write(f"vit evaluate {product.uri} --data URL    measure it on held-out photographs")
    console.write(f"vit promote {product.uri}    make it the champion, if it passes the gate")
    return 0


def show_plan(stages: Sequence[StagePlan], *, json: bool) -> int:
    """Print what a dry run found; returns exit code 0."""
    if json:
        console.as_json(plain(stages))
    else:
        console.table(
            ("stage", "identity", "state", "why"),
            [(stage.stage, stage.identity, stage.state, stage.reason) for stage in stages],
        )
    return 0
