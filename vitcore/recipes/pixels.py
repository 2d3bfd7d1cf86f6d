"""The statistics that papers normalise pixels with, as fields of a model; without them a recipe's are 0.5 and 0.5."""

from __future__ import annotations

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of ImageNet-1k's training photographs: DeiT, MoCo v3, DINO, MAE, T2T-ViT, PVT."""

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
"""Of CLIP's 400 million photographs, as its released code has them (2103.00020)."""
