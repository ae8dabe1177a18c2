"""The configuration: its keys, its files, and the models that it describes. Both engines read the same."""

import torch

from ..errors import ConfigError
from .files import merge_file, merge_overrides
from .keys import KEYS, PRECOMPUTED
from .rules import RULES
from .schema import Schema, flat, get, put

__all__ = [
    "PRECOMPUTED",
    "SCHEMA",
    "add_ga_scope_config",
    "class_key",
    "flat",
    "get",
    "load_config",
    "put",
]

SCHEMA = Schema(KEYS, RULES)


def add_ga_scope_config(cfg):
    """Adds this project's keys to a configuration of detectron2, in place."""
    return SCHEMA.add_defaults(cfg, builtin=False)


def load_config(cfg, config_file, overrides, builtin: bool, hint: str = ""):
    """A file and overrides on top of the defaults ``cfg``: every value checked, the device resolved; frozen.

    Args:
        builtin: for the built-in engine.
        hint: what a message on an unknown key ends with.

    Raises:
        ConfigError: naming the file or the key.
    """
    SCHEMA.add_defaults(cfg, builtin)
    own = merge_file(cfg, config_file, hint) | merge_overrides(cfg, overrides, hint)
    SCHEMA.settle(cfg, own)
    cfg.MODEL.DEVICE = _resolve_device(cfg.MODEL.DEVICE)
    SCHEMA.check(cfg, builtin)
    cfg.freeze()
    return cfg


def _resolve_device(device: str | None) -> str | None:
    """``auto`` resolved; a device that is not there is an error that says what to type."""
    if device is None:  # which the check of its key refuses
        return None
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE: {device} is not available here; append MODEL.DEVICE cpu (or auto)")
    return device


def class_key(cfg) -> str | None:
    """The key with the number of classes; None for a model that knows no classes."""
    part = {
        "GeneralizedRCNN": "ROI_HEADS",
        "GuidedAnchoringRetinaNet": "RETINANET",
        "RetinaNet": "RETINANET",
        "ScopeNet": "SCOPENET",
    }.get(cfg.MODEL.META_ARCHITECTURE)
    return part and f"MODEL.{part}.NUM_CLASSES"
