"""What a model is asked to learn: one configuration a way of learning, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from vitcore.recipe.config import Config


class LabelConfig(Config):
    """What the objectives that learn from labels share."""

    label_smoothing: float = 0.0
    """Mass spread over all classes (1512.00567)."""
    class_weight: Literal["none", "balanced"] = "none"
    """`balanced` weighs a class by the inverse of its frequency in the training split."""


class ClassifyConfig(LabelConfig):
    """Cross-entropy on class labels."""

    kind: Literal["classify"] = "classify"
    loss: Literal["softmax", "binary"] = "softmax"
    """``softmax``: one cross-entropy over the classes. ``binary``: one a class (2110.00476; DeiT III), the mean of
    which is taken."""


class DistillConfig(LabelConfig):
    """DeiT's distillation through a token of its own (2012.12877, section 4)."""

    kind: Literal["distill"] = "distill"
    mode: Literal["hard", "soft"] = "hard"
    """`hard` learns the teacher's decision (eq. 3), `soft` its distribution (eq. 2)."""
    alpha: float = 0.5
    """Share of the loss that follows the teacher."""
    tau: float = 3.0
    """Temperature of soft distillation."""


class ContrastConfig(Config):
    """Images and their captions find each other: CLIP's loss (2103.00020) or SigLIP's (2303.15343)."""

    kind: Literal["contrast"] = "contrast"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """``softmax``: which caption of the batch belongs to the image, and the reverse. ``sigmoid``: whether a pair
    belongs together, each pair for itself."""
    max_scale: float = 100.0
    """Largest inverse temperature that may be learned."""
    lock_image: bool = False
    """Whether the image tower keeps its weights (locked-image tuning, 2111.07991); give a parent with --model."""


class MocoConfig(Config):
    """MoCo v3 (2104.02057): a view's embedding finds the momentum network's embedding of the other view."""

    kind: Literal["moco"] = "moco"
    width: int = 256
    """Dimension of the embeddings."""
    hidden: int = 4096
    """Hidden width of projector and predictor."""
    temperature: float = 0.2
    """Temperature of the contrastive loss."""
    momentum: float = 0.99
    """Momentum of the second network at the start; it grows to 1 along a cosine."""
    freeze_patches: bool = True
    """Whether the patch projection stays as it was drawn, which keeps training stable (section 4.2)."""


class DinoConfig(Config):
    """DINO (2104.14294): small crops learn what a momentum teacher says of large ones."""

    kind: Literal["dino"] = "dino"
    prototypes: int = 65536
    """Outputs of the head."""
    hidden: int = 2048
    """Hidden width of the head."""
    bottleneck: int = 256
    """Width before the last, weight-normalised layer."""
    global_views: int = 2
    """How many of the first views the teacher sees; the student sees all."""
    student_temperature: float = 0.1
    """Temperature of the student's distribution."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Temperature of the teacher's at the start, and after its warm-up."""
    teacher_warmup: float = 0.3
    """Part of the training over which the teacher's temperature rises, linearly."""
    momentum: float = 0.996
    """Momentum of the teacher at the start; it grows to 1 along a cosine."""
    centre_momentum: float = 0.9
    """Momentum of the teacher's centre."""
    freeze_head: float = 0.01
    """Part of the training, from its start, in which the last layer is not changed."""


class MaeConfig(Config):
    """Masked autoencoder (2111.06377): the pixels of hidden patches are told from the others."""

    kind: Literal["mae"] = "mae"
    mask: float = 0.75
    """Share of the patches that is hidden."""
    width: int = 512
    """Width of the decoder."""
    depth: int = 8
    """Blocks of the decoder."""
    heads: int = 16
    """Attention heads of the decoder."""
    normalize_pixels: bool = True
    """Whether each patch is to be told normalised by its own mean and deviation."""

    @field_validator("mask")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 < value < 1:
            raise ValueError("must be a share between 0 and 1")
        return value


ObjectiveConfig = Annotated[
    ClassifyConfig | DistillConfig | ContrastConfig | MocoConfig | DinoConfig | MaeConfig,
    Field(discriminator="kind"),
]
