"""How evaluation prepares a photograph, in other libraries' words: short side to a size, then the centre."""

from __future__ import annotations

from typing import Any

from vitcore.models.pretrained import ModelCard

_CROP = 0.875  # share of the short side that the crop sees where the card names no other
_BICUBIC = 3  # Pillow's number


def resize_of(card: ModelCard) -> int:
    """Short side before the centre crop, in pixels."""
    return round(card.image_size / _CROP) if card.resize is None else card.resize


def for_timm(card: ModelCard) -> dict[str, Any]:
    """Fields of a ``pretrained_cfg``."""
    return {
        "input_size": [3, card.image_size, card.image_size],
        "interpolation": "bicubic",
        "crop_mode": "center",
        "crop_pct": card.image_size / resize_of(card),
        "mean": list(card.model.mean),
        "std": list(card.model.std),
        "num_classes": card.num_classes,
    }


def for_transformers(card: ModelCard) -> dict[str, Any]:
    """A ``preprocessor_config.json``: of its processors, CLIP's is the one that does just that."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resize_of(card)},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": card.image_size, "width": card.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.model.mean),
        "image_std": list(card.model.std),
    }
