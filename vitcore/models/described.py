"""An architecture in a few words, for model cards and tables."""

from __future__ import annotations

from vitcore.recipe import AskedConfig, ClipConfig, CnnConfig, ModelConfig, PvtConfig, T2tConfig

_NAMES = {
    "vit": "ViT",
    "deit": "DeiT",
    "hybrid": "hybrid ViT",
    "mixer": "MLP-Mixer",
    "t2t": "T2T-ViT",
    "pvt": "PVT v2",
}


def described(config: ModelConfig) -> str:
    """``ViT, patch 16, width 384, depth 12``; of a CLIP both towers."""
    if isinstance(config, ClipConfig):
        text = config.text
        return f"CLIP: {described(config.image)}; text of width {text.width}, depth {text.depth}"
    if isinstance(config, AskedConfig):
        return f"{config.name}, only asked"
    if isinstance(config, CnnConfig):
        return f"CNN, {config.name}"
    name = _NAMES[config.kind]
    if isinstance(config, PvtConfig):
        widths, depths = ("-".join(map(str, numbers)) for numbers in (config.widths, config.depths))
        return f"{name}, widths {widths}, depths {depths}"
    patch = "" if isinstance(config, T2tConfig) else f"patch {config.patch}, "
    return f"{name}, {patch}width {config.width}, depth {config.depth}"
