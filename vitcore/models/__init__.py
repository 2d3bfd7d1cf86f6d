"""Models: build one from its configuration, adapt one, keep one, or load one by reference."""

from vitcore.models.adapt import adapt
from vitcore.models.build import build
from vitcore.models.classifier import Classifier
from vitcore.models.deit import DeiT
from vitcore.models.model import Model
from vitcore.models.positions import resize_position_embedding
from vitcore.models.pretrained import ModelCard, Pretrained, load_pretrained, save_pretrained
from vitcore.models.references import load_reference
from vitcore.models.references.wrap import wrap
from vitcore.models.vit import VisionTransformer

__all__ = [
    "Classifier",
    "DeiT",
    "Model",
    "ModelCard",
    "Pretrained",
    "VisionTransformer",
    "adapt",
    "build",
    "load_pretrained",
    "load_reference",
    "resize_position_embedding",
    "save_pretrained",
    "wrap",
]
