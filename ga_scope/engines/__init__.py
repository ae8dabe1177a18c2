"""The engines: detectron2, the engine of record, and the built-in one on torchvision, which needs nothing else."""

import importlib.util

from ..errors import ConfigError
from .base import Engine

__all__ = ["ENGINES", "Engine", "get_engine", "resolved"]

ENGINES = ("auto", "detectron2", "torchvision")


def resolved(name: str) -> str:
    """``auto`` is detectron2 where it is installed, else the built-in engine.

    Raises:
        ConfigError: it is not there.
    """
    if name not in ENGINES:
        raise ConfigError(f"--engine: expected {', '.join(ENGINES)}, got {name!r}")
    there = importlib.util.find_spec("detectron2") is not None
    if name == "detectron2" and not there:
        raise ConfigError(
            "--engine detectron2: detectron2 is not installed; see its installation page, or take --engine torchvision"
        )
    return "detectron2" if there and name != "torchvision" else "torchvision"


def get_engine(name: str = "auto") -> Engine:
    """An engine by name (:func:`resolved`)."""
    if resolved(name) == "torchvision":
        from .torchvision.engine import BuiltinEngine

        return BuiltinEngine()
    from .detectron2.engine import Detectron2Engine

    return Detectron2Engine()
