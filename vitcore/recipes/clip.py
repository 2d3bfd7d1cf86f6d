"""Images and captions in one space: CLIP (2103.00020), SigLIP (2303.15343), locked-image tuning (2111.07991).

CLIP's hyper-parameters are those of its tables 18 to 20, its numbers those of table 11: zero-shot on ImageNet-1k after
32 epochs over 400 million pairs that were never published. The corpus is yours: photographs with captions.
"""

from __future__ import annotations

from typing import Any

from vitcore.recipe import (
    AugmentConfig,
    ClipConfig,
    CnnConfig,
    ContrastConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    TextConfig,
    TrainConfig,
    VitConfig,
)
from vitcore.recipes.pixels import CLIP
from vitcore.recipes.vit import variant

_SQUARE = AugmentConfig(crop="simple", hflip=0.0)
"""A random square of the resized photograph, "the only data augmentation" (2103.00020, section 2.4)."""


def clip_b32() -> Recipe:
    """CLIP with a ViT-B/32 and a text transformer of 12 blocks.

    Paper: Radford et al. 2021, 2103.00020; Learning transferable visual models from natural language supervision
    Command: vit pretrain clip_b32 --data URL
    Hardware: V100 GPUs (the paper's; how many for this model is not published)
    Hours: not published; for this model
    Number: 63.2 % top-1; zero-shot on ImageNet-1k
    """
    return Recipe(
        name="clip_b32",
        data=DataConfig(image_size=224, captions=True, augment=_SQUARE),
        model=ClipConfig(width=512, image=tower(variant("B/32")), text=TextConfig(activation="quick_gelu")),
        objective=ContrastConfig(),
        optim=OptimConfig(
            lr=5e-4,
            min_lr=0.0,
            warmup="2000 steps",
            weight_decay=0.2,
            betas=(0.9, 0.98),
            eps=1e-6,
            clip_norm=None,
        ),
        train=TrainConfig(duration="32 epochs", batch_size=32768),
        eval=EvalConfig(metric="recall_at_10", resize=224),
    )


def clip_b16() -> Recipe:
    """CLIP with a ViT-B/16 and a text transformer of 12 blocks.

    Paper: Radford et al. 2021, 2103.00020; Learning transferable visual models from natural language supervision
    Command: vit pretrain clip_b16 --data URL
    Hardware: V100 GPUs (the paper's; how many for this model is not published)
    Hours: not published; for this model
    Number: 68.6 % top-1; zero-shot on ImageNet-1k
    """
    base = clip_b32()
    model = base.model.model_copy(update={"image": tower(variant("B/16"))})
    return base.model_copy(update={"name": "clip_b16", "model": model})


def clip_l14() -> Recipe:
    """CLIP with a ViT-L/14 and a text transformer of 12 blocks.

    Paper: Radford et al. 2021, 2103.00020; Learning transferable visual models from natural language supervision
    Command: vit pretrain clip_l14 --data URL
    Hardware: 256 V100 GPUs (the paper's, section 2.5)
    Hours: 288; 12 days, the paper's
    Number: 75.3 % top-1; zero-shot on ImageNet-1k
    """
    base = clip_b32()
    text = TextConfig(width=768, heads=12, activation="quick_gelu")
    return base.model_copy(
        update={
            "name": "clip_l14",
            "model": ClipConfig(width=768, image=tower(variant("L/14")), text=text),
            "optim": base.optim.model_copy(update={"lr": 4e-4}),
        }
    )


def clip_rn50() -> Recipe:
    """CLIP with a convolutional image tower, torchvision's ResNet-50.

    Paper: Radford et al. 2021, 2103.00020; Learning transferable visual models from natural language supervision
    Command: vit pretrain clip_rn50 --data URL
    Hardware: V100 GPUs (the paper's; how many for this model is not published)
    Hours: not published; for this model
    Number: not published; for this tower. 59.6 % zero-shot on ImageNet-1k with the paper's own

    The paper's ResNet-50 differs: three convolutions in the stem, blurred strides and an attention pooling at the end.
    """
    base = clip_b32()
    text = TextConfig(activation="quick_gelu")
    image = CnnConfig(name="resnet50", dropout=0.0).model_copy(update=CLIP)
    return base.model_copy(
        update={
            "name": "clip_rn50",
            "model": ClipConfig(width=1024, image=image, text=text),
            "optim": base.optim.model_copy(update={"betas": (0.9, 0.999), "eps": 1e-8}),
        }
    )


def siglip_b16() -> Recipe:
    """SigLIP with a ViT-B/16: each pair of an image and a caption is judged for itself.

    Paper: Zhai et al. 2023, 2303.15343; Sigmoid loss for language image pre-training, table 1
    Command: vit pretrain siglip_b16 --data URL
    Hardware: 32 TPUv4 chips (the paper's, table 1)
    Hours: 120; 5 days, the paper's
    Number: 73.4 % top-1; zero-shot on ImageNet-1k, after 9 billion pairs of WebLI, which was never published

    The towers are those of the public weights (64 tokens of text). Departures: AdamW for Adafactor, with the paper's
    decoupled weight decay of 1e-4 divided by the rate; the length of the warm-up is not published.
    """
    base = clip_b32()
    lr = 1e-3
    return base.model_copy(
        update={
            "name": "siglip_b16",
            "model": ClipConfig(width=768, image=_pooled(variant("B/16")), text=_siglip_text(), **_SIGMOID),
            "objective": ContrastConfig(loss="sigmoid"),
            "optim": OptimConfig(lr=lr, min_lr=0.0, warmup="2%", weight_decay=1e-4 / lr, betas=(0.9, 0.95)),
            "train": TrainConfig(duration="9B samples", batch_size=32768),
        }
    )


def lit_b16() -> Recipe:
    """Locked-image tuning: a text tower learns to read the features of a ViT-B/16 that stays as it is.

    Paper: Zhai et al. 2022, 2111.07991; LiT: zero-shot transfer with locked-image text tuning
    Command: vit finetune lit_b16 --model REF --data URL
    Hardware: not published; for public photographs
    Hours: not published
    Number: 73.9 % top-1; zero-shot on ImageNet-1k (the released LiT-B16B_2: CC12M and YFCC100M, 60,000 steps)

    REF is a ViT-B/16 without a distillation token (`timm:vit_base_patch16_224.augreg_in21k`). Departures: the text
    tower starts anew and reads CLIP's tokens where the released one is a BERT; AdamW for Adafactor. Batch and warm-up
    of the released model are not published.
    """
    text = TextConfig(width=768, heads=12)
    base = clip_b32()
    return base.model_copy(
        update={
            "name": "lit_b16",
            "model": ClipConfig(width=768, image=variant("B/16"), text=text, image_projection=False, scale=10.0),
            "objective": ContrastConfig(lock_image=True),
            "optim": OptimConfig(lr=1e-3, min_lr=0.0, warmup="5%", weight_decay=0.1),
            "train": TrainConfig(duration="60k steps", batch_size=16384),
        }
    )


def clip_tiny_cpu() -> Recipe:
    """CLIP with a ResNet-18 for some thousand captioned photographs (Flickr8k, at 48 pixels) and two CPU cores.

    Paper: Radford et al. 2021, 2103.00020; shrunk
    Command: vit pretrain clip_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.25
    Number: 12 % recall at 10 among 1,000 photographs of Flickr8k; `make reproduce`. Chance is 1 %

    So few photographs are too few for a ViT to learn to see from captions alone. A third of its parameters are the
    embeddings of the 49,408 tokens there are.
    """
    return Recipe(
        name="clip_tiny_cpu",
        data=DataConfig(
            image_size=48,
            captions=True,
            augment=AugmentConfig(crop_scale=(0.5, 1.0), jitter=(0.3, 0.3, 0.3, 0.0)),
        ),
        model=ClipConfig(
            width=256,
            image=CnnConfig(name="resnet18", dropout=0.0),
            text=TextConfig(context=32, width=128, depth=1, heads=4),
        ),
        objective=ContrastConfig(),
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup="10%", weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6),
        train=TrainConfig(duration="24 epochs", batch_size=128),
        eval=EvalConfig(every="10%", metric="recall_at_10", resize=48),
    )


def siglip_tiny_cpu() -> Recipe:
    """`clip_tiny_cpu` with SigLIP's loss: the same towers, the same tokens, the same budget.

    Paper: Zhai et al. 2023, 2303.15343; shrunk
    Command: vit pretrain siglip_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.3; a rough estimate
    Number: none; chance is 1 % recall at 10 among 1,000 photographs
    """
    base = clip_tiny_cpu()
    return base.model_copy(
        update={
            "name": "siglip_tiny_cpu",
            "model": base.model.model_copy(update=_START),
            "objective": ContrastConfig(loss="sigmoid"),
        }
    )


_START = {"scale": 10.0, "bias": -10.0}
"""The start of SigLIP's scale and bias (section 3.2)."""
_SIGMOID: dict[str, Any] = {"image_projection": False, **_START}
"""SigLIP's pooled features are the embedding."""


def tower(vit: VitConfig) -> VitConfig:
    """A ViT as CLIP's image tower (2103.00020, section 2.4): a norm before the blocks, patches without a bias."""
    fields = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "quick_gelu", **CLIP}
    return vit.model_copy(update=fields)


def _pooled(vit: VitConfig) -> VitConfig:
    """A ViT as SigLIP's image tower: pooled by attention."""
    return vit.model_copy(update={"pooling": "map", "activation": "gelu_tanh"})


def _siglip_text() -> TextConfig:
    return TextConfig(
        tokenizer="siglip",
        context=64,
        vocabulary=32000,
        width=768,
        heads=12,
        causal=False,
        pooling="last",
        projection_bias=True,
        activation="gelu_tanh",
        norm_eps=1e-6,
    )
