"""The built-in engine: the project's models on torchvision's backbones.

It reads the same configurations as detectron2 and writes the same checkpoints. What it cannot honour is an error that
names the key.
"""

from fvcore.common.config import CfgNode

from ...config.schema import BUILTIN_HINT
from ..base import Batch, Engine
from .data import TrainMapper
from .model import build_model
from .names import named_state


class BuiltinEngine(Engine):
    name = "torchvision (built-in)"
    builtin = True
    unknown_key = f"{BUILTIN_HINT}, if it is a key of detectron2"

    def defaults(self):
        return CfgNode()

    def build(self, cfg):
        return build_model(cfg)

    def named_state(self, model):
        return named_state(model)

    def run(self, model, inputs, maps=False):
        sizes = [tuple(x["image"].shape[1:]) for x in inputs]
        return Batch(model(inputs, maps), sizes)

    carried = ("positives",)  # of RetinaNet

    def mapper(self, cfg):
        return TrainMapper(cfg)

    def losses(self, model, inputs, iteration):
        return model(inputs).losses
