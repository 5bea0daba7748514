"""Resolves settings from presets, files and flags into one frozen `Experiment`. Imports no model library, no MLflow."""

from specexp.config.drafter import (
    DRAFTER_PROMPTS,
    OUTPUTS_TOGETHER,
    TRAINABLE,
    DrafterConfig,
    resolve_drafter,
)
from specexp.config.experiment import (
    CALIBRATED,
    MAX_NGRAM,
    Experiment,
    MethodConfig,
    TreeConfig,
    settings_hash,
)
from specexp.config.mining import (
    CHECKABLE,
    FEATURE_DTYPES,
    MINED_PROMPTS,
    MINED_TOGETHER,
    MiningConfig,
    resolve_mining,
)
from specexp.config.parsers import TASK_SOURCES
from specexp.config.presets import KINDS, PRESETS, group_of, load_yaml, method_preset, preset_names, preset_text
from specexp.config.resolver import adjusted, resolve

__all__ = [
    "CALIBRATED", "CHECKABLE", "DRAFTER_PROMPTS", "FEATURE_DTYPES", "KINDS", "MAX_NGRAM", "MINED_PROMPTS",
    "MINED_TOGETHER", "OUTPUTS_TOGETHER", "PRESETS", "TASK_SOURCES", "TRAINABLE", "DrafterConfig", "Experiment",
    "MethodConfig", "MiningConfig", "TreeConfig", "adjusted", "group_of", "load_yaml", "method_preset", "preset_names",
    "preset_text", "resolve", "resolve_drafter", "resolve_mining", "settings_hash",
]  # fmt: skip
