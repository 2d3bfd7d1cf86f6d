"""WHAT is learned (`Recipe`) and HOW it is run (`Compute`), and the digests that say whether two runs are the same.

One frozen pydantic model serves the command line's typed flags, the Prefect form, MLflow's params, the JSON in a
checkpoint and the identity of a stage. Nothing here imports torch: reading a recipe is cheap.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitcore.duration import PartDuration, TrainDuration, TrainInterval, WallInterval
from vitcore.errors import RequestError

SCHEMA_VERSION = 1
MOST_IN_A_ROUND = 10_000
"""Largest sum of a mixture's weights: the pattern of a round is kept in memory, and a share below 0.01 % is none."""


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown field, attribute docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AugmentConfig(Config):
    """What happens to a training photograph between decoding and the network."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random resized crop, as a fraction of the photograph (Inception crop)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the random resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    randaug_layers: int = 0
    """RandAugment (1909.13719): operations per view; 0 switches it off."""
    randaug_magnitude: float = 9.0
    """RandAugment: strength, 0 to 10."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Colour jitter (2002.05709, appendix A): how far the factors of brightness, contrast and saturation may move from
    1, and the hue along the colour circle; self-supervised recipes take 0.4 0.4 0.2 0.1."""
    jitter_prob: float = 0.8
    """Probability of the colour jitter, where it is on."""
    grey: float = 0.0
    """Probability of losing all colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Blur: least and most standard deviation, in pixels."""
    solarize: float = 0.0
    """Probability of inverting the brighter half of the values (2006.07733, appendix B)."""
    erasing: float = 0.0
    """Probability of random erasing (1708.04896)."""
    mixup: float = 0.0
    """Mixup's Beta(alpha, alpha) (1710.09412); 0 switches it off."""
    cutmix: float = 0.0
    """CutMix's Beta(alpha, alpha) (1905.04899); 0 switches it off. With both, each lane draws one of the two a step."""
    mix_prob: float = 1.0
    """Probability that a lane is mixed at a step, when Mixup or CutMix is on."""

    @field_validator("jitter")
    @classmethod
    def _jitter_range(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if not all(0 <= part <= most for part, most in zip(value, (1, 1, 1, 0.5), strict=True)):
            raise ValueError("brightness, contrast and saturation must be from 0 to 1, hue from 0 to 0.5")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _sigma_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two deviations above 0, the smaller one first")
        return value


class ViewConfig(Config):
    """Further views of a sample, beside the first, for objectives that compare views (self-supervised learning)."""

    count: int = 1
    """How many views of this kind."""
    image_size: int | None = None
    """Height and width, in pixels; default: that of the first view."""
    augment: AugmentConfig = AugmentConfig()
    """How they are made; all but Mixup and CutMix, which mix first views only."""

    @field_validator("count", "image_size")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @model_validator(mode="after")
    def _unmixed(self) -> ViewConfig:
        if self.augment.mixup or self.augment.cutmix:
            raise ValueError("Mixup and CutMix mix first views only: set them in data.augment")
        return self


class DataConfig(Config):
    """Which samples reach the model, in which order, and how they are changed."""

    image_size: int = 224
    """Height and width of the network's input, in pixels."""
    train_split: str = "train"
    """Split to train on."""
    lanes: int | None = None
    """Lanes the sample order is cut into; default: the largest divisor of the batch with at least 8 slots a lane."""
    window: int = 1024
    """Samples shuffled together inside a lane: larger mixes better, smaller reads more locally."""
    repeats: int = 1
    """Repeated augmentation (1901.09335): views of a sample that follow each other."""
    error_budget: float = 0.01
    """Fraction of samples that may be unreadable before the run fails."""
    mixture: tuple[int, ...] = ()
    """Training on several datasets: how many samples of each make a round, in the order in which they are given."""
    captions: bool = False
    """Whether batches carry a caption of each sample, drawn anew every time it is shown."""
    augment: AugmentConfig = AugmentConfig()
    views: tuple[ViewConfig, ...] = ()
    """Further views of each sample; its photograph is decoded once for all of them."""

    @field_validator("image_size", "window", "repeats")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("mixture")
    @classmethod
    def _weights(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(weight < 1 for weight in value) or sum(value) > MOST_IN_A_ROUND:
            raise ValueError(f"must be whole numbers from 1, adding up to {MOST_IN_A_ROUND} at most")
        return value


class NormalizeConfig(Config):
    """Fields every model shares: the statistics its input is normalised with."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel means subtracted from pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel deviations pixels are divided by."""


class VitConfig(NormalizeConfig):
    """Vision transformer (2010.11929)."""

    kind: Literal["vit"] = "vit"
    patch: int = 16
    """Side of a square patch, in pixels."""
    width: int = 192
    """Embedding dimension D."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 3
    """Attention heads; `width` must be divisible by it."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over D."""
    pooling: Literal["token", "mean"] = "token"
    """What the head reads: the class token, or the mean of the patch tokens."""
    dropout: float = 0.0
    """Dropout after the position embedding, the attention projection and in the MLP."""
    drop_path: float = 0.0
    """Stochastic depth (1603.09382): rate of the last block, growing linearly from 0."""

    @field_validator("patch", "width", "depth", "heads")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("dropout", "drop_path")
    @classmethod
    def _rate(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("must be a rate from 0 to below 1")
        return value

    @model_validator(mode="after")
    def _heads_divide(self) -> VitConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        return self


class DeitConfig(VitConfig):
    """ViT with a distillation token and a second head (2012.12877); at test time the two heads are averaged."""

    kind: Literal["deit"] = "deit"  # type: ignore[assignment]
    pooling: Literal["token"] = "token"


class CnnConfig(NormalizeConfig):
    """A convolutional network by name: ``efficientnet_lite0``, or most of torchvision's classifiers (``resnet50``)."""

    kind: Literal["cnn"] = "cnn"
    name: str = "efficientnet_lite0"
    """Name of the architecture."""
    dropout: float = 0.2
    """Dropout before the head."""


class ParentConfig(Config):
    """The architecture of the model that training starts from; fields given here replace the parent's."""

    kind: Literal["parent"] = "parent"
    drop_path: float | None = None
    """Stochastic depth while fine-tuning; default: the parent's."""


ModelConfig = Annotated[VitConfig | DeitConfig | CnnConfig, Field(discriminator="kind")]
"""An architecture that can be built."""


class ClassifyConfig(Config):
    """Cross-entropy on class labels."""

    kind: Literal["classify"] = "classify"
    label_smoothing: float = 0.0
    """Mass spread over all classes (1512.00567)."""
    class_weight: Literal["none", "balanced"] = "none"
    """`balanced` weighs a class by the inverse of its frequency in the training split."""


class DistillConfig(Config):
    """DeiT's distillation through a token of its own (2012.12877, section 4)."""

    kind: Literal["distill"] = "distill"
    mode: Literal["hard", "soft"] = "hard"
    """`hard` learns the teacher's decision (eq. 3), `soft` its distribution (eq. 2)."""
    alpha: float = 0.5
    """Share of the loss that follows the teacher."""
    tau: float = 3.0
    """Temperature of soft distillation."""
    label_smoothing: float = 0.0
    """Mass spread over all classes, on the class token's loss only."""
    class_weight: Literal["none", "balanced"] = "none"
    """`balanced` weighs a class by the inverse of its frequency in the training split."""


ObjectiveConfig = Annotated[ClassifyConfig | DistillConfig, Field(discriminator="kind")]


class OptimConfig(Config):
    """AdamW (1711.05101), a linear warm-up and a cosine decay (1608.03983)."""

    lr: float = 1e-3
    """Peak learning rate, at the recipe's own batch size."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup: PartDuration = "5%"
    """Linear warm-up from 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay; never on biases, norms, tokens and position embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; none: no clipping."""
    layer_decay: float = 1.0
    """Factor on the learning rate per layer from the head down (1.0: none; fine-tuning often takes 0.65 to 0.9)."""


class TrainConfig(Config):
    """How long, with which batch and seed."""

    duration: TrainDuration = "90 epochs"
    """How long to train."""
    batch_size: int = 1024
    """Samples in an optimiser step over all workers; accumulation and worker count do not change it."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights; the average is what is validated and kept."""

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value


class EvalConfig(Config):
    """Validation while training; the best checkpoint is the one kept."""

    split: str = "val"
    """Split to validate on."""
    every: TrainInterval = "10%"
    """How often to validate; the last step is always validated."""
    metric: Literal["top1", "balanced_accuracy", "loss"] = "top1"
    """What chooses the best checkpoint."""
    resize: int | None = None
    """Short side before the centre crop, in pixels; default: image size ÷ 0.875."""
    batch_size: int = 256
    """Samples in an evaluation batch."""


class Recipe(Config):
    """WHAT is learned. Two equal recipes on equal inputs learn the same thing; nothing here says where it runs."""

    schema_version: Literal[1] = 1
    """Version of this layout; older ones are migrated when read."""
    name: str
    """Name in `vit recipes`."""
    data: DataConfig = DataConfig()
    model: Annotated[VitConfig | DeitConfig | CnnConfig | ParentConfig, Field(discriminator="kind")] = VitConfig()
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

    def identity_parts(self) -> dict[str, Any]:
        """What a training's identity depends on: everything but the name."""
        return self.model_dump(mode="json", exclude={"name"})


class Compute(Config):
    """HOW a recipe is run. Nothing here changes what is learned, so nothing here is part of an identity."""

    workers: int | None = None
    """Ray Train workers, one process each; default: one a GPU, without GPUs two (one where there is a single core)."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of a worker; `auto` takes a GPU where the cluster has one."""
    threads: int | None = None
    """CPU cores a worker computes with; default: the machine's cores divided by its workers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 where the hardware computes in it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto` compiles on CUDA only (it never paid on a CPU)."""
    microbatch: int | None = None
    """Most samples in one forward pass of a worker; the rest of its share is accumulated. Default: all of it."""
    checkpoint_every: WallInterval = "5 min"
    """How often to checkpoint; every validation is a checkpoint too."""
    keep: int = 2
    """Newest checkpoints kept beside the best one."""
    loader_workers: int = 2
    """Threads a worker decodes with."""
    cache_gb: float = 4.0
    """Most disk, in GiB, that a worker keeps fetched parts of remote shards in; local shards need none."""
    cache_dir: str | None = None
    """Folder of that cache, on a local disk; default: the system's folder for temporary files."""
    max_failures: int = 3
    """How often a failed worker group is restarted from the newest checkpoint."""

    @field_validator("workers", "keep")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("cache_gb")
    @classmethod
    def _size(cls, value: float) -> float:
        if value < 0:
            raise ValueError("must be 0 or more")
        return value


C = TypeVar("C", bound=Config)


def apply_overrides(config: C, overrides: Mapping[str, Any]) -> C:
    """A copy of `config` with dotted fields replaced: ``{"train.duration": "3 epochs"}``.

    Raises:
        RequestError: an unknown field (with the nearest known one), or a value that does not validate.
    """
    tree: dict[str, Any] = config.model_dump(mode="json")
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        node: Any = tree
        for depth, name in enumerate([*parents, leaf]):
            if not isinstance(node, dict) or name not in node:
                raise RequestError(_unknown_field(dotted, parents[:depth], node))
            if depth < len(parents):
                node = node[name]
        node[leaf] = value
    return parse(type(config), tree)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted field → JSON value, leaves only."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                walk(f"{prefix}.{name}" if prefix else name, value)
        else:
            flat[prefix] = node

    walk("", config.model_dump(mode="json"))
    return flat


def parse(kind: type[C], tree: Any) -> C:
    """Validate a JSON value as a configuration; a misspelt or wrong field becomes one clear sentence."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        field = ".".join(_written(tree, first["loc"]))
        raise RequestError(f"{field}: {what}" if field else what) from None


def _written(tree: Any, location: tuple[int | str, ...]) -> list[str]:
    """A validation error's location as the fields are written: without the tags that choose a union's member."""
    parts: list[str] = []
    node = tree
    for part in location:
        if isinstance(node, Mapping) and part not in node and node.get("kind") == part:
            continue
        parts.append(str(part))
        inside = (isinstance(node, Mapping) and part in node) or (isinstance(node, list) and isinstance(part, int))
        node = node[part] if inside else None
    return parts


def _unknown_field(dotted: str, parents: list[str], node: Any) -> str:
    known = list(node) if isinstance(node, dict) else []
    near = difflib.get_close_matches(dotted.split(".")[len(parents)], known, n=1)
    where = f" in {'.'.join(parents)}" if parents else ""
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}" if known else ""
    return f"there is no field {dotted!r}{where}{hint}"
