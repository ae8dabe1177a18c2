"""Checkpoints of a run, of either engine: parameters under detectron2's names, and what their numbers mean."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import SCHEMA, flat
from ..config.checks import plain
from ..errors import CheckpointError
from .weights import read_checkpoint

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # the file that names the newest, as detectron2's
META = "ga_scope"  # the entry with what the numbers mean
# Counters of BatchNorm, on which nothing depends, and what follows from the configuration.
_DERIVED = re.compile(r".*(num_batches_tracked|anchor_generator\.cell_anchors\.\d+)|pixel_(mean|std)")
# A network beside the model that reads it and that nothing else reads: a score without it is of the same weights.
_SIDE = re.compile(r"detector\.quality\..*")


def named_parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what is derived."""
    return {name: value for name, value in state.items() if not _DERIVED.fullmatch(name)}


def description(cfg, classes) -> dict:
    """What has to travel with weights: the names of the classes, and the configuration."""
    return {
        "classes": None if classes is None else list(classes),
        "config": {k: plain(v) for k, v in flat(cfg).items()},
    }


def check_meaning(path, cfg, meta: dict | None):
    """Weights mean something else under another configuration.

    Raises:
        CheckpointError: naming the first key that differs from what the weights were trained with.
    """
    if not meta:
        return
    trained = meta["config"]
    for key in SCHEMA.keys.values():
        if not key.weights or key.name not in trained or not SCHEMA.is_read(cfg, key.name):
            continue
        value = flat(cfg)[key.name]
        if plain(value) != trained[key.name]:
            raise CheckpointError(f"{path}: was trained with {key.name} {trained[key.name]!r}, not {value!r}")


class Checkpointer:
    """Saves and loads a model and what trains it.

    Args:
        cfg: of the run.
        model: whose parameters are loaded in place.
        names: gives a model's tensors by detectron2's names.
        folder: of the run's own files.
        classes: names, which travel with the weights.
        parts: what resuming needs beside the model, with ``state_dict`` and ``load_state_dict``, by name.
    """

    def __init__(self, cfg, model: nn.Module, names: Callable, folder="", classes=None, **parts):
        self.cfg, self.model, self.names = cfg, model, names
        self.folder, self.classes = Path(folder), classes
        self.parts = parts

    # ---- saving ---------------------------------------------------------------------------------

    def save(self, name: str, **more) -> Path:
        """Writes ``<name>.pth`` and makes it the newest."""
        content = {
            "model": {name: value.detach().cpu() for name, value in named_parameters(self.names(self.model)).items()},
            META: description(self.cfg, self.classes),
            **{name: part.state_dict() for name, part in self.parts.items()},
            **more,
        }
        path = self.folder / f"{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, lambda file: torch.save(content, file))
        _write_whole(self.folder / LAST, lambda file: file.write(path.name.encode()))
        return path

    # ---- loading --------------------------------------------------------------------------------

    def last(self) -> Path | None:
        """The newest checkpoint of the run."""
        pointer = self.folder / LAST
        return self.folder / pointer.read_text().strip() if pointer.exists() else None

    def load(self, path, strict: bool = True) -> dict:
        """The model's parameters from a file; what else the file holds.

        With ``strict`` (evaluation, resuming) every parameter must be there in its shape and no other, under the
        configuration that it was trained with. Without (weights to start from) parameters that are missing or of
        another shape start fresh and are named in a warning, as for a new number of classes; but a file of which
        nothing fits is an error.
        """
        content = read_checkpoint(str(path))
        own = named_parameters(self.names(self.model))
        given = named_parameters(content["model"])
        missing = [name for name in own if name not in given]
        shapes = [
            f"{name}: {tuple(given[name].shape)} in the file, {tuple(value.shape)} in the model"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ]
        unread = [name for name in given if name not in own and not _SIDE.fullmatch(name)]
        if strict:
            check_meaning(path, self.cfg, content.get(META))
            problems = (
                shapes + [f"{name}: missing" for name in missing] + [f"{name}: not in the model" for name in unread]
            )
            if problems:
                raise CheckpointError(f"{path}: does not fit the model: {_some(problems)}")
        if len(missing) + len(shapes) >= len(own):
            raise CheckpointError(f"{path}: no parameter fits the model, for example {_some(shapes or missing)}")
        if missing or shapes:
            logger.warning("%s: these start fresh: %s", path, _some(shapes + missing, 20))
        if unread:
            logger.info("%s: the model has no use for %s", path, _some(unread, 5))
        with torch.no_grad():
            for name, value in own.items():
                if name in given and given[name].shape == value.shape:
                    value.copy_(given[name])
        return content

    def resume(self, path) -> dict:
        """The model and all parts from a file of a run; what else the file holds."""
        content = self.load(path)
        absent = [name for name in self.parts if name not in content]
        if absent:
            raise CheckpointError(
                f"{path}: expected {', '.join(absent)} to resume from, got none: a file of the other engine? --engine "
                f"chooses that one; MODEL.WEIGHTS {path} starts anew from the weights"
            )
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        return content


def classes_of(content: dict) -> list[str] | None:
    """The names that travel with weights; None for a file of another make."""
    return (content.get(META) or {}).get("classes")


def _write_whole(path: Path, write):
    """The file is there whole or not at all, whenever the process or the machine dies."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _some(items, most=3):
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
