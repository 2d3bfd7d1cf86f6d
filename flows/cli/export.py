"""`vit export`: a model as a folder that another library loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from flows.cli import console
from flows.cli.arguments import parse
from flows.cli.session import Session


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The model: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, hf:ORG/NAME, open_clip:ARCH/TAG,
    torchvision:NAME, or a model's folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """A folder that does not exist yet, or is empty."""
    to: Literal["safetensors", "timm", "hf", "open_clip", "onnx"]
    """For whom: timm, Hugging Face's transformers, open_clip, ONNX runtimes, or (safetensors) this library."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="export",
        about="Write a model as a folder that another library loads as it stands: weights, class names and image "
        "preparation. ONNX graphs take plain pixels in [0, 1] and batches of any size.",
        examples=(
            "vit export models:/birds@champion birds-hf --to hf",
            "vit export models:/birds/3 birds-onnx --to onnx",
            "vit export models:/pairs/1 pairs-clip --to open_clip --json",
        ),
    )
    settings = session.start()
    from tasks.models import localize
    from vitcore.models import load_reference
    from vitcore.models.export import export

    model = load_reference(localize(settings.tracking_uri, settings.home / "models", given.model))
    done = export(model, given.out, given.to)
    if given.json:
        console.as_json(
            {
                "model": given.model,
                "digest": model.digest,
                "format": given.to,
                "folder": str(done.folder),
                "files": list(done.files),
                "use": done.use,
            }
        )
        return 0
    console.fields({"folder": done.folder, "files": ", ".join(done.files), "load with": done.use})
    return 0
