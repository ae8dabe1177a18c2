"""Files of detectron2's model zoo, read without detectron2: ``detectron2://`` addresses and its pickles."""

import pickle
import re

import numpy as np
import torch
from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager

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


def read_pickle(path: str) -> dict:
    """A checkpoint of the zoo: detectron2's own, or a Caffe2 backbone (MSRA's ResNets), under detectron2's names."""
    with open(path, "rb") as file:
        data = _ArraysOnly(file, encoding="latin1").load()
    if "model" in data and "__author__" in data:
        state = data["model"]
    else:
        blobs = data.get("blobs", data)
        state = {detectron2_backbone_name(name): value for name, value in blobs.items() if "_momentum" not in name}
    # Copied: the arrays of a pickle are read-only.
    return {"model": {name: torch.from_numpy(np.array(value)) for name, value in state.items()}}


_BLOCK = re.compile(r"res(\d)_(\d+)_branch(1|2[abc])_(.+)")
_LAYER = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_PARAMETER = {"w": "weight", "b": "bias", "bn_s": "norm.weight", "bn_b": "norm.bias",
              "bn_rm": "norm.running_mean", "bn_riv": "norm.running_var"}  # fmt: skip


def detectron2_backbone_name(blob: str) -> str:
    """detectron2's name of a blob of a Caffe2 ResNet below an FPN. Others (the ImageNet classifier's) stay."""
    block = _BLOCK.fullmatch(blob)
    if block and block[4] in _PARAMETER:
        return f"backbone.bottom_up.res{block[1]}.{block[2]}.{_LAYER[block[3]]}.{_PARAMETER[block[4]]}"
    stem = re.fullmatch(r"(?:res_)?conv1_(.+)", blob)
    if stem and stem[1] in _PARAMETER:
        return f"backbone.bottom_up.stem.conv1.{_PARAMETER[stem[1]]}"
    return blob
