"""Checkpoints of a run, of either engine: parameters under detectron2's names, and what their numbers mean."""

import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import SCHEMA, flat
from ..config.checks import plain
from ..config.keys import RESNET
from ..errors import CheckpointError
from .backbone_names import named_as_in
from .weights import paths, read_checkpoint

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # the file that names the newest, as detectron2's
NONE = "none yet"  # its content until a run in a folder of an earlier one has saved
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


class DamagedError(CheckpointError):
    """A file that is no healthy checkpoint: another one may be."""


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
        """Writes ``<name>.pth`` and makes it the newest.

        Raises:
            DamagedError: of numbers that are not finite; nothing is written.
            CheckpointError: the file cannot be written; those before it are as they were.
        """
        parts = {part: value.state_dict() for part, value in self.parts.items()}
        path = self._write(name, parts | more)
        write_whole(self.folder / LAST, lambda file: file.write(path.name.encode()))
        return path

    def save_weights(self, name: str, **more) -> Path:
        """Writes ``<name>.pth`` with the weights alone, which no run resumes from."""
        return self._write(name, more)

    def _write(self, name, more) -> Path:
        content = {
            "model": {name: value.detach().cpu() for name, value in named_parameters(self.names(self.model)).items()},
            META: description(self.cfg, self.classes),
            **more,
        }
        path = self.folder / f"{name}.pth"
        check_finite(path, content)
        write_whole(path, lambda file: torch.save(content, file))
        return path

    def keep(self, most: int):
        """Removes the oldest of the files that :meth:`save` wrote every so many steps, but for ``most``; 0: none."""
        numbered = [path for path in self._files() if re.fullmatch(r"model_\d+", path.stem)]
        for path in numbered[most:] if most else []:
            path.unlink(missing_ok=True)

    def begin_anew(self):
        """What lies in the folder is of an earlier run: :meth:`newest` does not take it for one of this."""
        if self._files():
            write_whole(self.folder / LAST, lambda file: file.write(NONE.encode()))

    def clean(self):
        """Removes what writes that were killed have left."""
        for pattern in ("*.pth.*.part", f"{LAST}.*.part"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    # ---- loading --------------------------------------------------------------------------------

    def last(self) -> Path | None:
        """The file that is named as the newest, whether it is there or not."""
        try:
            name = (self.folder / LAST).read_text(errors="replace").strip("\0 \n\t")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self.folder / name if name and "/" not in name else None

    def _files(self) -> list[Path]:
        """What a run could resume from, the file that was written last first."""
        found = [path for path in self.folder.glob("model_*.pth") if re.fullmatch(r"model_(\d+|final)", path.stem)]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def load(self, path, strict: bool = True) -> dict:
        """The model's parameters from a file; what else the file holds.

        With ``strict`` (evaluation, resuming) every parameter must be there in its shape and no other, under the
        configuration that it was trained with. Without (weights to start from) parameters that are missing or of
        another shape start fresh and are named in a warning, as for a new number of classes; but a file of which
        nothing fits is an error.
        """
        try:
            content = read_healthy(path)
        except DamagedError as error:
            raise CheckpointError(str(error)) from error
        self._take(path, content, strict)
        return content

    def _take(self, path, content, strict):
        own = named_parameters(self.names(self.model))
        given = named_parameters(named_as_in(own, content["model"]))
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
        if not strict and "layer1.0.conv1.weight" in content["model"]:
            self._warn_of_torchvision(path)
        with torch.no_grad():
            for name, value in own.items():
                if name in given and given[name].shape == value.shape:
                    value.copy_(given[name])

    def _warn_of_torchvision(self, path):
        """torchvision's ResNets see other pixels than the zoo's, and stride elsewhere."""
        model, wrong = self.cfg.MODEL, []
        if not RESNET.certain(self.cfg):
            return
        if self.cfg.INPUT.FORMAT != "RGB":
            wrong.append("INPUT.FORMAT RGB with its PIXEL_MEAN [123.675, 116.28, 103.53] and PIXEL_STD "
                         "[58.395, 57.12, 57.375]")  # fmt: skip
        if model.RESNETS.STRIDE_IN_1X1 and model.RESNETS.DEPTH >= 50:
            wrong.append("MODEL.RESNETS.STRIDE_IN_1X1 False")
        if wrong:
            logger.warning("%s: a ResNet of torchvision, which was trained with %s", path, " and ".join(wrong))

    def newest(self) -> tuple[Path, dict] | None:
        """The newest healthy checkpoint of the run and its content, None where the run has none.

        That is the one that is named as the newest, or, where it is damaged, the one that was written last of those
        that are not; a warning says which are.

        Raises:
            CheckpointError: all are damaged.
        """
        last, files = self.last(), self._files()
        damaged = []
        if last and last.name == NONE:
            since, earlier = (self.folder / LAST).stat().st_mtime_ns, files
            files, last = [path for path in files if path.stat().st_mtime_ns > since], None
            if earlier and not files:
                logger.warning(
                    "%s: is of an earlier run than the last one, which has saved nothing; to go on from it, write its "
                    "name into %s", earlier[0], self.folder / LAST,
                )  # fmt: skip
        for path in dict.fromkeys([last, *files] if last else files):
            try:
                content = read_healthy(path)
            except DamagedError as error:
                damaged.append(str(error))
                continue
            if damaged:
                logger.warning("%s; taken instead: %s", "; ".join(damaged), path)
            return path, content
        if damaged:
            raise CheckpointError(
                f"{self.folder}: expected a healthy checkpoint to resume from, got none: {_some(damaged)}; without "
                "--resume the run starts anew"
            )
        return None

    def resume(self, path, content: dict | None = None) -> dict:
        """The model and all parts from a file of a run, whose ``content`` may have been read; that content."""
        content = read_healthy(path) if content is None else content
        absent = [name for name in self.parts if name not in content]
        if absent:
            raise CheckpointError(
                f"{path}: expected {', '.join(absent)} to resume from, got none: a file of weights, or of "
                f"an earlier version; MODEL.WEIGHTS {path} starts anew from the weights"
            )
        self._take(path, content, strict=True)
        for name, part in self.parts.items():
            try:
                part.load_state_dict(content[name])
            except (ValueError, KeyError, RuntimeError) as error:
                raise CheckpointError(f"{path}: its {name} does not fit this run: {error}") from None
        return content


# ---- files -----------------------------------------------------------------------------------------


def read_healthy(path) -> dict:
    """A checkpoint that is whole and finite.

    Raises:
        DamagedError: it is not; or it is no checkpoint.
    """
    try:
        check_whole(path)
        content = read_checkpoint(str(path))
    except DamagedError:
        raise
    except CheckpointError as error:
        raise DamagedError(str(error)) from error
    check_finite(path, content)
    return content


def check_whole(path):
    """The checksums that ``torch.save`` writes, one of each tensor, are right; torch itself does not look at them.

    Raises:
        DamagedError: they are not.
    """
    local = paths.get_local_path(str(path)) if "://" in str(path) else str(path)
    if not os.path.isfile(local) or not zipfile.is_zipfile(local):
        return  # missing, truncated, or of another kind: its reader says so
    try:
        with zipfile.ZipFile(local) as file:
            altered = file.testzip()
    except Exception as error:  # a damaged directory: whatever zipfile makes of it
        raise DamagedError(f"{path}: not a checkpoint that can be read: {error}") from None
    if altered:
        raise DamagedError(f"{path}: damaged: {altered} has not the checksum that it was written with")


def check_finite(path, content: dict):
    """Raises DamagedError for weights, or what trains them, that are not finite."""
    tensors = [(name, value) for name, value in _tensors(content) if value.is_floating_point()]
    broken = [name for name, value in tensors if not bool(value.isfinite().all())]
    if broken:
        raise DamagedError(
            f"{path}: {len(broken)} of {len(tensors)} tensors are not finite: {_some(broken)}: the training diverged"
        )


def _tensors(content, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (dict, list, tuple)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


class _Remembering:
    """A file to write, and what went wrong with it: ``torch.save`` has an error of its own for a full disk."""

    def __init__(self, file):
        self._file, self.error = file, None

    def write(self, data):
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self._file.flush()


def write_whole(path: Path, write: Callable):
    """The file is there whole or not at all, whenever the process or the machine dies: written beside it, synced,
    read back, renamed.

    Raises:
        CheckpointError: it cannot be written (a full disk, a folder that is read-only).
    """
    partial, remembering = path.with_name(f"{path.name}.{os.getpid()}.part"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            remembering = _Remembering(file)
            write(remembering)
            file.flush()
            os.fsync(file.fileno())
        check_whole(partial)
        partial.replace(path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:
        cause = remembering.error if remembering and remembering.error else error
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{path}: cannot be written: {cause.strerror or cause}; the checkpoints before it are as they were"
        ) from None
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError:  # of a folder that is none, or read-only: what is wrong has been said
            pass


def _sync(folder: Path):
    """The names in a folder outlast a power failure only when it is synced, too (Linux and other Unixes)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def classes_of(content: dict) -> list[str] | None:
    """The names that travel with weights; None for a file of another make."""
    return (content.get(META) or {}).get("classes")


def _some(items, most=3):
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
