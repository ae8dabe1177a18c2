"""Files of weights: this project's, detectron2's, its zoo's, torchvision's, plain state dicts. No file's code is run.

What is read has detectron2's names, which are this project's on disk.
"""

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager
from torch import Tensor

from ..errors import CheckpointError

ZOO = "https://dl.fbaipublicfiles.com/detectron2/"


class _ZooHandler(PathHandler):
    """``detectron2://FILE``: the file of the zoo, downloaded once into iopath's cache."""

    PREFIX = "detectron2://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        return paths.get_local_path(ZOO + path[len(self.PREFIX) :], force, **kwargs)


paths = PathManager()
paths.register_handler(HTTPURLHandler())
paths.register_handler(_ZooHandler())


def read_checkpoint(path: str) -> dict:
    """``{"model": {name: tensor}}`` and what else the file holds.

    Raises:
        CheckpointError: the file is missing, broken, or no checkpoint.
    """
    try:
        local = Path(paths.get_local_path(str(path)))
        if not local.is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        content = _read_pickle(local) if local.suffix == ".pkl" else _read_torch(local)
    except CheckpointError:
        raise
    except Exception as error:  # a truncated zip, a pickle of something else, no network: whatever the reader says
        raise CheckpointError(f"{path}: not a checkpoint that can be read: {_line(error)}") from error
    state = content.get("model", content.get("state_dict")) if isinstance(content, dict) else None
    if state is None:  # the bare state dict of a model
        state, content = content, {}
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected the parameters of a model by their names, got {_kind(state)}")
    return content | {"model": _detectron2_names(state)}


def _line(error) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        found = re.search(r"GLOBAL (\S+)", text)
        return f"it holds more than tensors, which is not loaded for safety ({found[1] if found else text[:120]})"
    return text[:300] or type(error).__name__


def _kind(state) -> str:
    if isinstance(state, dict):
        odd = next(
            (f"{key}: {type(value).__name__}" for key, value in state.items() if not isinstance(value, Tensor)), ""
        )
        return f"a dict with {odd}" if odd else "an empty dict"
    return type(state).__name__


def _read_torch(path: Path):
    return torch.load(path, map_location="cpu", weights_only=True)


# ---- the zoo's pickles -----------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run any code; the zoo's hold arrays in dicts, and nothing else is let in."""

    ALLOWED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        }
    )

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"expected arrays only, got {module}.{name}, which is not loaded for safety")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> dict:
    """A checkpoint of the zoo: detectron2's own, or a Caffe2 backbone (MSRA's ResNets)."""
    with open(path, "rb") as file:
        data = _ArraysOnly(file, encoding="latin1").load()
    if not isinstance(data, dict):
        raise ValueError(f"expected arrays by their names, got {type(data).__name__}")
    if "model" in data and "__author__" in data:
        state = data["model"]
    else:
        blobs = data.get("blobs", data)
        state = {_of_caffe2(name): value for name, value in blobs.items() if "_momentum" not in name}
    # Copied: the arrays of a pickle are read-only.
    return {"model": {name: torch.from_numpy(np.array(value)) for name, value in state.items()}}


_BLOCK = re.compile(r"res(\d)_(\d+)_branch(1|2[abc])_(.+)")
_LAYER = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_PARAMETER = {"w": "weight", "b": "bias", "bn_s": "norm.weight", "bn_b": "norm.bias",
              "bn_rm": "norm.running_mean", "bn_riv": "norm.running_var"}  # fmt: skip


def _of_caffe2(blob: str) -> str:
    """detectron2's name of a blob of a Caffe2 ResNet below an FPN. Others (the ImageNet classifier's) stay."""
    block = _BLOCK.fullmatch(blob)
    if block and block[4] in _PARAMETER:
        return f"backbone.bottom_up.res{block[1]}.{block[2]}.{_LAYER[block[3]]}.{_PARAMETER[block[4]]}"
    stem = re.fullmatch(r"(?:res_)?conv1_(.+)", blob)
    if stem and stem[1] in _PARAMETER:
        return f"backbone.bottom_up.stem.conv1.{_PARAMETER[stem[1]]}"
    return blob


# ---- names -----------------------------------------------------------------------------------------

# (torchvision's name, detectron2's name) of a ResNet's parameter: a regular expression, and what becomes of it, with
# sums in braces.
RESNET_NAMES = [
    (r"conv1\.(.+)", r"stem.conv1.\1"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"res{\1+1}.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"res{\1+1}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"res{\1+1}.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"res{\1+1}.\2.shortcut.norm.\3"),
]


def _detectron2_names(state: dict) -> dict:
    """The state with torchvision's ImageNet ResNets, which are bare backbones, below an FPN."""
    if not {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= set(state):
        return state
    found = {name: renamed(name, RESNET_NAMES) for name in state}
    return {f"backbone.bottom_up.{there}" if there else name: state[name] for name, there in found.items()}


def renamed(name: str, table) -> str | None:
    """The name of a parameter elsewhere, None where no row fits.

    ``table`` holds (regular expression of the whole name, what becomes of it): groups as in :func:`re.sub`, and
    sums of two digits in braces, as in ``res{\\1+1}``.
    """
    for pattern, template in table:
        match = re.fullmatch(pattern, name)
        if match:
            return re.sub(
                r"\{(\d)\+(\d)\}", lambda digits: str(int(digits[1]) + int(digits[2])), match.expand(template)
            )
    return None
