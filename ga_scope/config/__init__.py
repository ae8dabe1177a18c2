"""The configuration: its keys, its files, and the models that it describes. Both engines read the same."""

import torch

from ..errors import ConfigError
from ..modeling.timm_stages import timm_pixels
from .files import merge_file, merge_overrides
from .keys import KEYS, PRECOMPUTED, TIMM
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
    _settle_pixels(cfg, own)
    cfg.MODEL.DEVICE = _resolve_device(cfg.MODEL.DEVICE)
    SCHEMA.check(cfg, builtin)
    cfg.freeze()
    return cfg


def _settle_pixels(cfg, own: set[str]):
    """A network of timm wants the pixels that it was trained with, unless the file itself says others."""
    if not TIMM.certain(cfg):
        return
    try:
        mean, std = timm_pixels(cfg.MODEL.TIMM.NAME)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"MODEL.TIMM.NAME: {error}") from None
    for name, value in (("INPUT.FORMAT", "RGB"), ("MODEL.PIXEL_MEAN", mean), ("MODEL.PIXEL_STD", std)):
        if name not in own:
            put(cfg, name, value)


def _resolve_device(device: str | None) -> str | None:
    """``auto`` resolved; a device that is not there is an error that says what to type."""
    if device is None:  # which the check of its key refuses
        return None
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(device.split(":")[0])
    if there is not None and not there():
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
