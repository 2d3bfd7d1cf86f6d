"""WHAT is learned (`Recipe`) and HOW it is run (`Compute`), and the digests that say whether two runs are the same.

One frozen pydantic model serves the command line's typed flags, the Prefect form, MLflow's params, the JSON in a
checkpoint and the identity of a stage. Nothing here imports torch: reading a recipe is cheap.
"""

from vitcore.recipe.compute import Compute
from vitcore.recipe.config import Config, apply_overrides, flatten, parse
from vitcore.recipe.data import MOST_IN_A_ROUND, AugmentConfig, DataConfig, ViewConfig
from vitcore.recipe.model import (
    AskedConfig,
    BackboneConfig,
    ClipConfig,
    CnnConfig,
    DeitConfig,
    HybridConfig,
    MixerConfig,
    ModelConfig,
    NormalizeConfig,
    ParentConfig,
    PvtConfig,
    T2tConfig,
    TextConfig,
    VitConfig,
)
from vitcore.recipe.objective import (
    ClassifyConfig,
    ContrastConfig,
    DinoConfig,
    DistillConfig,
    LabelConfig,
    MaeConfig,
    MocoConfig,
    ObjectiveConfig,
)
from vitcore.recipe.recipe import METRICS, SCHEMA_VERSION, Recipe
from vitcore.recipe.train import EvalConfig, OptimConfig, TrainConfig

__all__ = [
    "METRICS",
    "MOST_IN_A_ROUND",
    "SCHEMA_VERSION",
    "AskedConfig",
    "AugmentConfig",
    "BackboneConfig",
    "ClassifyConfig",
    "ClipConfig",
    "CnnConfig",
    "Compute",
    "Config",
    "ContrastConfig",
    "DataConfig",
    "DeitConfig",
    "DinoConfig",
    "DistillConfig",
    "EvalConfig",
    "HybridConfig",
    "LabelConfig",
    "MaeConfig",
    "MixerConfig",
    "MocoConfig",
    "ModelConfig",
    "NormalizeConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ParentConfig",
    "PvtConfig",
    "Recipe",
    "T2tConfig",
    "TextConfig",
    "TrainConfig",
    "ViewConfig",
    "VitConfig",
    "apply_overrides",
    "flatten",
    "parse",
]
