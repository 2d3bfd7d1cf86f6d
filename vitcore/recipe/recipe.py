"""WHAT is learned, in one value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitcore.recipe.config import Config
from vitcore.recipe.data import DataConfig
from vitcore.recipe.model import (
    ClipConfig,
    CnnConfig,
    DeitConfig,
    HybridConfig,
    MixerConfig,
    ParentConfig,
    PvtConfig,
    T2tConfig,
    VitConfig,
)
from vitcore.recipe.objective import (
    ClassifyConfig,
    ContrastConfig,
    DinoConfig,
    LabelConfig,
    MocoConfig,
    ObjectiveConfig,
)
from vitcore.recipe.train import EvalConfig, OptimConfig, TrainConfig

SCHEMA_VERSION = 1
METRICS = {
    "classify": ("top1", "balanced_accuracy", "loss"),
    "distill": ("top1", "balanced_accuracy", "loss"),
    "contrast": ("recall_at_10", "loss"),
    "moco": ("knn", "last"),
    "dino": ("knn", "last"),
    "mae": ("knn", "last"),
}
"""What each way of learning can be validated by (`eval.metric`)."""


class Recipe(Config):
    """WHAT is learned. Two equal recipes on equal inputs learn the same thing; nothing here says where it runs."""

    schema_version: Literal[1] = 1
    """Version of this layout; older ones are migrated when read."""
    name: str
    """Name in `vit recipes`."""
    data: DataConfig = DataConfig()
    model: Annotated[
        VitConfig
        | DeitConfig
        | HybridConfig
        | CnnConfig
        | MixerConfig
        | T2tConfig
        | PvtConfig
        | ClipConfig
        | ParentConfig,
        Field(discriminator="kind"),
    ] = VitConfig()
    objective: ObjectiveConfig = ClassifyConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, tree: Any) -> Any:
        """Bring an older layout to this one (there is none yet); a newer one is refused by its own sentence."""
        version = tree.get("schema_version", SCHEMA_VERSION) if isinstance(tree, dict) else SCHEMA_VERSION
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ValueError(
                f"the recipe has schema version {version}; this release reads up to {SCHEMA_VERSION}: upgrade"
            )
        return tree

    @model_validator(mode="after")
    def _crop_fits(self) -> Recipe:
        if self.eval.resize is not None and self.eval.resize < self.data.image_size:
            raise ValueError(
                f"eval.resize {self.eval.resize} is smaller than data.image_size {self.data.image_size}; "
                "raise eval.resize, or set it to none"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        objective, model, views = self.objective, self.model, 1 + sum(view.count for view in self.data.views)
        known = METRICS[objective.kind]
        if self.eval.metric not in known:
            raise ValueError(
                f"eval.metric {self.eval.metric!r} is not known of the objective {objective.kind}; "
                f"take {' or '.join(known)}"
            )
        contrasts = isinstance(objective, ContrastConfig)
        if not isinstance(model, ParentConfig) and contrasts != isinstance(model, ClipConfig):
            raise ValueError(
                f"the objective {objective.kind} does not train a {model.kind}; an image and a text model (clip) and "
                "the objective contrast go together"
            )
        if contrasts and not self.data.captions:
            raise ValueError("the objective contrast learns from captions: set data.captions")
        if not isinstance(objective, LabelConfig) and (self.data.augment.mixup or self.data.augment.cutmix):
            raise ValueError(f"Mixup and CutMix mix labels, which the objective {objective.kind} does not look at")
        if isinstance(objective, DinoConfig) and self.train.ema_decay is not None:
            raise ValueError("DINO keeps its teacher, an average of the weights already: set train.ema_decay to none")
        if isinstance(objective, MocoConfig) and views != 2:
            raise ValueError(f"MoCo v3 compares two views of a photograph, not {views}: set data.views")
        if isinstance(objective, DinoConfig) and not 1 < objective.global_views <= views:
            raise ValueError(
                f"objective.global_views must be at least 2 and at most the {views} views there are: set data.views"
            )
        return self

    @property
    def needs_parent(self) -> bool:
        """Whether training starts from another model, whose architecture or image tower it takes."""
        locked = isinstance(self.objective, ContrastConfig) and self.objective.lock_image
        return locked or isinstance(self.model, ParentConfig)

    @property
    def needs_labels(self) -> bool:
        """Whether training or validation asks for the class of a sample."""
        return isinstance(self.objective, LabelConfig) or self.eval.metric == "knn"

    @property
    def validates(self) -> bool:
        """Whether a validation split is looked at while training."""
        return self.eval.metric != "last"

    def identity_parts(self) -> dict[str, Any]:
        """What a training's identity depends on: everything but the name."""
        return self.model_dump(mode="json", exclude={"name"})
