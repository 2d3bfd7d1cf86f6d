"""The model card: what a registered version is, what it was made from, how good it is and what it is not for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tasks.on_mlflow.registry import DESCRIPTION_CHARACTERS
from tasks.on_mlflow.runs import cut

Kind = Literal["classifier", "backbone", "clip"]
"""What a model answers with: classes, features of photographs, or embeddings of photographs and texts."""
_PIPELINES: dict[Kind, str] = {
    "classifier": "image-classification",
    "backbone": "image-feature-extraction",
    "clip": "zero-shot-image-classification",
}


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of the held-out split with its 95 % confidence interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True, slots=True)
class Card:
    """What `markdown` writes; empty fields leave their line or section out."""

    name: str
    """Registered model."""
    task: str
    """What it does, in a sentence."""
    architecture: str
    """Such as ``DeiT, patch 16, width 192, depth 12``."""
    classes: tuple[str, ...]
    parameters: int
    image_size: int
    """Height and width of its input, in pixels."""
    recipe: str
    """Name of the recipe."""
    recipe_digest: str
    training: str
    """Duration, batch, optimiser: a sentence."""
    dataset: str
    """URL or name."""
    dataset_digest: str
    split: str
    """Split the scores are of, with its size: ``test (524 photographs)``."""
    scores: tuple[Score, ...]
    parent: str | None = None
    """Reference of the model it was continued from."""
    teacher: str | None = None
    """Reference of the model it was distilled from."""
    remarks: tuple[str, ...] = ()
    """What the reader of the scores must know, a sentence each."""
    intended_use: str = ""
    limits: tuple[str, ...] = ()
    license: str = ""
    """Of the weights: often that of the photographs."""
    git: str = ""
    """Commit of the code."""
    papers: tuple[str, ...] = field(default=())
    """arXiv numbers."""
    kind: Kind = "classifier"


def markdown(card: Card, ref: str = "") -> str:
    """The whole card, with the front matter that model hubs read.

    Args:
        card: what is known.
        ref: the version's reference for the "how to load" section; default: its champion.
    """
    ref = ref or f"models:/{card.name}@champion"
    sections = [
        _front_matter(card),
        f"# {card.name}\n\n{card.task}",
        _section("Scores", _scores(card)),
        _section("What it is", _list(_facts(card))),
        _section("What it was made from", _list(_lineage(card))),
        _section("Intended use", card.intended_use),
        _section("Limits", _list(card.limits)),
        _section("How to load it", _loading(ref, card.kind)),
    ]
    return "\n\n".join(part for part in sections if part) + "\n"


def summary(card: Card) -> str:
    """The card as a version's description: no front matter, at most 5,000 characters."""
    classes = f"Classes: {_names(card.classes)}." if card.classes else ""
    parts = [card.task, _scores(card), _list([*_lineage(card), *card.limits]), classes]
    return cut("\n\n".join(part for part in parts if part), DESCRIPTION_CHARACTERS)


def _front_matter(card: Card) -> str:
    lines = [f"pipeline_tag: {_PIPELINES[card.kind]}", "library_name: vitcore", f"tags: [{', '.join(_tags(card))}]"]
    if card.license:
        lines.append(f"license: {card.license.lower()}")
    return "\n".join(["---", *lines, "---"])


def _tags(card: Card) -> Iterable[str]:
    yield "vision-transformer"
    if card.teacher:
        yield "distillation"
    yield from (f"arxiv:{paper}" for paper in card.papers)


def _scores(card: Card) -> str:
    if not card.scores:
        return ""
    rows = [f"| {score.name} | {score} |" for score in card.scores]
    remarks = "\n".join(f"\n{remark}" for remark in card.remarks)
    return "\n".join([f"| {card.split} | value (95 % interval) |", "|---|---|", *rows]) + remarks.rstrip()


def _facts(card: Card) -> Iterable[str]:
    yield f"{card.architecture}; {card.parameters:,} parameters; input {card.image_size} by {card.image_size} pixels"
    if card.classes:
        yield f"{len(card.classes)} classes: {_names(card.classes)}"
    if card.license:
        yield f"Licence: {card.license}"


def _lineage(card: Card) -> Iterable[str]:
    yield f"Recipe `{card.recipe}` (`{card.recipe_digest}`): {card.training}"
    yield f"Dataset {card.dataset}, version `{card.dataset_digest}`"
    if card.parent:
        yield f"Continued from `{card.parent}`"
    if card.teacher:
        yield f"Distilled from `{card.teacher}`"
    if card.git:
        yield f"Code at commit `{card.git}`"


def _loading(ref: str, kind: Kind) -> str:
    told = {
        "classifier": f"On the command line: `vit predict {ref} photograph.jpg`",
        "backbone": "Each row of the answer holds the features of a photograph. To classify with them: "
        f"`vit finetune finetune_224 --model {ref} --data URL`",
        "clip": "A column `text` instead of `image` embeds texts. On the command line: "
        f'`vit predict {ref} photograph.jpg --classes "a dog,a cat"`',
    }
    return f"""```python
import mlflow.pyfunc, pandas as pd

model = mlflow.pyfunc.load_model("{ref}")
photograph = open("photograph.jpg", "rb").read()
print(model.predict(pd.DataFrame({{"image": [photograph]}})))
```

{told[kind]}"""


def _names(classes: tuple[str, ...], most: int = 20) -> str:
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return ", ".join(classes[:most]) + more


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
