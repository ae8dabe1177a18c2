"""Checkpoints of MMDetection's guided-anchoring models: read safely, renamed, compared with a configuration.

The four families are GA-RPN, GA-Fast R-CNN, GA-Faster R-CNN and GA-RetinaNet, on ResNet and ResNeXt with an FPN,
caffe and pytorch style, of MMDetection 1, 2 and 3. What comes out is a state dict of detectron2's names, which
either engine loads.
"""

import ast
import os
import re
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import untrusted
from ..errors import CheckpointError
from .backbone_names import renamed
from .weights import read_torch

# (MMDetection's name, detectron2's name), sums in braces.
BACKBONE = [
    (r"backbone\.(conv1\..+)", r"backbone.bottom_up.stem.\1"),
    (r"backbone\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.layer(\d)\.(\d+)\.(conv\d)\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.\3.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.conv\3.norm.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.shortcut.\3"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.shortcut.norm.\3"),
]
TWO_STAGE = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_lateral{\1+2}.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_output{\1+2}.\2"),
    (r"rpn_head\.rpn_conv\.(.+)", r"proposal_generator.rpn.head.conv.\1"),
    (r"rpn_head\.conv_loc\.(.+)", r"proposal_generator.rpn.head.location.\1"),
    (r"rpn_head\.conv_shape\.(.+)", r"proposal_generator.rpn.head.shape.\1"),
    (r"rpn_head\.feature_adaption\.(.+)", r"proposal_generator.rpn.head.adaption.\1"),
    (r"rpn_head\.conv_cls\.(.+)", r"proposal_generator.rpn.head.objectness.\1"),
    (r"rpn_head\.conv_reg\.(.+)", r"proposal_generator.rpn.head.deltas.\1"),
    (r"(?:roi_head\.)?bbox_head\.shared_fcs\.(\d)\.(.+)", r"roi_heads.box_head.fc{\1+1}.\2"),
    (r"(?:roi_head\.)?bbox_head\.fc_cls\.(.+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"(?:roi_head\.)?bbox_head\.fc_reg\.(.+)", r"roi_heads.box_predictor.bbox_pred.\1"),
]
ONE_STAGE = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_lateral{\1+3}.\2"),
    (r"neck\.fpn_convs\.([012])\.conv\.(.+)", r"backbone.fpn_output{\1+3}.\2"),
    (r"neck\.fpn_convs\.([34])\.conv\.(.+)", r"backbone.top_block.p{\1+3}.\2"),
    # A tower is convolutions and ReLUs in turn.
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(.+)", r"detector.head.classification_tower.{\1+\1}.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(.+)", r"detector.head.regression_tower.{\1+\1}.\2"),
    (r"bbox_head\.conv_loc\.(.+)", r"detector.head.location.\1"),
    (r"bbox_head\.conv_shape\.(.+)", r"detector.head.shape.\1"),
    (r"bbox_head\.feature_adaption_cls\.(.+)", r"detector.head.classification.adaption.\1"),
    (r"bbox_head\.feature_adaption_reg\.(.+)", r"detector.head.regression.adaption.\1"),
    (r"bbox_head\.retina_cls\.(.+)", r"detector.head.classification.predict.\1"),
    (r"bbox_head\.retina_reg\.(.+)", r"detector.head.regression.predict.\1"),
]
# A family by what only it has.
GA_RPN, RETINA, BOX_HEAD = "rpn_head.feature_adaption.", "bbox_head.retina_cls.", "bbox_head.fc_cls."


class ConversionError(CheckpointError):
    """A checkpoint that cannot be converted."""


# ---- reading --------------------------------------------------------------------------------------------------------


def read_checkpoint(path) -> dict:
    """A checkpoint of any age (torch's zip and its former format), of which nothing is run.

    MMEngine's hold objects of its classes beside the weights (HistoryBuffer and others), and a file of unknown
    origin may hold anything: all but arrays and plain containers are placeholders.

    Raises:
        ConversionError: no such file, or not a checkpoint.
    """
    try:
        untrusted.check_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ConversionError(f"{path}: expected a checkpoint, got a TorchScript program")
        elif tarfile.is_tarfile(path):
            raise ConversionError(f"{path}: expected a checkpoint, got a tar file")
        # weights_only has its own unpickler, which refuses what it does not know; this one passes it by.
        content = read_torch(path, pickle_module=untrusted.PICKLE, weights_only=False)
        untrusted.check_tensors(_tensors(content), path)
    except ConversionError:
        raise
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file") from None
    except Exception as error:  # whatever a reader says of a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConversionError(f"{path}: not a checkpoint that can be read: {reason}") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: expected a mapping with state_dict, got {type(content).__name__}")
    return content


def _tensors(content) -> list[torch.Tensor]:
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    return [v for v in state.values() if isinstance(v, torch.Tensor)] if isinstance(state, dict) else []


# ---- converting -----------------------------------------------------------------------------------------------------


@dataclass
class Converted:
    """A model of MMDetection under this project's names.

    Attributes:
        family: "GA-RPN", "GA-Fast R-CNN", "GA-Faster R-CNN" or "GA-RetinaNet".
        state: parameters and statistics by detectron2's names.
        unknown: names that no parameter of the family has; strictly, there are none.
        settings: what else inference depends on, by this project's keys, as far as the file says it.
        notes: what a user has to know.
    """

    family: str
    state: dict[str, torch.Tensor]
    unknown: list[str] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def require_known(self):
        """Raises a ConversionError for parameters that the family does not have."""
        if self.unknown:
            more = f" and {len(self.unknown) - 1} more" if len(self.unknown) > 1 else ""
            raise ConversionError(f"{self.unknown[0]}{more}: no parameter of a {self.family}")

    def save(self, path):
        """Writes a checkpoint for either engine, in one step.

        Raises:
            ConversionError: for unknown parameters, or a folder that is not there.
        """
        self.require_known()
        path = Path(path)
        if not path.parent.is_dir():
            raise ConversionError(f"{path.parent}: no such folder")
        partial = path.with_name(path.name + ".partial")
        torch.save({"model": self.state}, partial)
        os.replace(partial, path)


def convert_checkpoint(path, complement: bool = False) -> Converted:
    """:func:`convert` of :func:`read_checkpoint`; errors name the file."""
    content = read_checkpoint(path)
    try:
        return convert(content, complement)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None


def convert(content: dict, complement: bool = False) -> Converted:
    """Converts what :func:`read_checkpoint` returns, or a bare state dict.

    Args:
        complement: negate the location branch. The location loss of MMDetection since 2.0 takes label 1, an object's
            centre, for the background, so that the branch learns the complement; 1 - sigmoid(x) = sigmoid(-x).

    Raises:
        ConversionError: the parameters are those of another model.
    """
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict):
        raise ConversionError(f"state_dict: expected names and tensors, got {type(state).__name__}")
    state = {re.sub(r"^module\.", "", str(name)): value for name, value in state.items()}
    family, table = _family(state)
    converted = Converted(family, {})
    background_first = _background_first(state)
    for name, value in state.items():
        if name.endswith("num_batches_tracked") or name.startswith("data_preprocessor."):
            continue
        ours = renamed(name, BACKBONE + table)
        if ours is None:
            converted.unknown.append(name)
            continue
        if not isinstance(value, torch.Tensor):
            raise ConversionError(f"{name}: expected a tensor, got {type(value).__name__}")
        value = value.detach().float()
        if ".objectness.weight" in ours or ".deltas.weight" in ours:
            value = value.flatten(1)  # 1x1 convolutions there, linear layers on the listed locations here
        if complement and ".location." in ours:
            value = -value
        if background_first and ".cls_score." in ours:
            value = value.roll(-1, 0)  # to the end, as detectron2 and MMDetection 2 have it
        if background_first and ".bbox_pred." in ours and len(value) > 4:
            value = value[4:]  # the background's
        converted.state[ours] = value.clone()
    converted.settings = _settings(content, state)
    _take_notes(converted, state, content, background_first, complement)
    return converted


def _family(state):
    if any(name.startswith(RETINA) for name in state):
        if "bbox_head.conv_loc.weight" not in state:
            raise ConversionError("expected a GA-RetinaNet (bbox_head.conv_loc), got a RetinaNet of fixed anchors")
        return "GA-RetinaNet", ONE_STAGE
    guided = any(name.startswith(GA_RPN) for name in state)
    box_head = any(name.removeprefix("roi_head.").startswith(BOX_HEAD) for name in state)
    if any(name.startswith("rpn_head.rpn_cls.") for name in state):
        raise ConversionError("expected the parameters of a GA-RPN (rpn_head.feature_adaption), got those of an RPN")
    if guided or box_head:
        return {(1, 0): "GA-RPN", (0, 1): "GA-Fast R-CNN", (1, 1): "GA-Faster R-CNN"}[guided, box_head], TWO_STAGE
    names = ", ".join(list(state)[:3]) or "nothing"
    raise ConversionError(
        "expected the parameters of a GA-RPN (rpn_head.feature_adaption...), GA-Fast or GA-Faster R-CNN "
        f"(bbox_head.fc_cls...) or GA-RetinaNet (bbox_head.retina_cls...), got {names}"
    )


def _background_first(state) -> bool:
    """MMDetection 1's order of classes: its box head has deltas for the background, too."""
    classes, deltas = (
        next(
            (state[name] for prefix in ("roi_head.bbox_head.", "bbox_head.") if (name := prefix + layer) in state), None
        )
        for layer in ("fc_cls.bias", "fc_reg.bias")
    )
    if classes is None or deltas is None:
        return False
    return len(deltas) == 4 * len(classes) or (len(deltas) == 4 and "bbox_head.fc_cls.bias" in state)


def _take_notes(converted, state, content, background_first, complement):
    meta = content.get("meta")
    version = str(meta.get("mmdet_version", "")) if isinstance(meta, dict) else ""
    if background_first or re.match(r"[01]\.", version):
        converted.notes.append(
            "of MMDetection 1: the classes were put into this project's order. Its boxes count pixels inclusively and "
            "its cells stand for their middles (MODEL.GUIDED_ANCHORING.CELL_OFFSET 0.5), so boxes come out within "
            "about a pixel of its own"
        )
    bias = state.get("rpn_head.conv_loc.bias", state.get("bbox_head.conv_loc.bias"))
    if isinstance(bias, torch.Tensor) and bias.numel() == 1 and (bias.item() > 0) != complement:
        converted.notes.append(
            f"the location branch's bias is {bias.item():.2f}: "
            + (
                "below 0 it has probably learned the centres themselves; leave --complement out"
                if complement
                else "above 0 it has probably learned the complement of the centres; --complement negates it"
            )
        )


# ---- settings -------------------------------------------------------------------------------------------------------


def _settings(content, state) -> dict:
    """What of a model's configuration its parameters and the configuration in the file say, by this project's keys."""
    settings = {}
    first = state.get("backbone.layer1.0.conv2.weight")
    blocks = {int(match[1]) for name in state if (match := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    if isinstance(first, torch.Tensor) and first.dim() == 4 and "backbone.layer1.0.conv3.weight" in state:
        groups = len(first) // first.shape[1]
        settings["MODEL.RESNETS.DEPTH"] = {6: 50, 23: 101, 36: 152}.get(len(blocks), 0)
        settings["MODEL.RESNETS.NUM_GROUPS"] = groups
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = len(first) // groups
    mean, std = state.get("data_preprocessor.mean"), state.get("data_preprocessor.std")
    if isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor):
        settings["MODEL.PIXEL_MEAN"] = mean.flatten().tolist()
        settings["MODEL.PIXEL_STD"] = std.flatten().tolist()
    return settings | _written_settings(content)


def _written_settings(content) -> dict:
    meta = content.get("meta")
    text = (
        next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
        if isinstance(meta, dict)
        else ""
    )
    try:
        names = _assignments(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}

    def get(*paths):
        """The first of some paths that the configuration has."""
        for path in paths:
            value = names
            for part in path.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None

    head = "bbox_head" if get("model.bbox_head.stacked_convs") is not None else "rpn_head"
    settings = {
        "MODEL.RESNETS.STRIDE_IN_1X1": {"caffe": True, "pytorch": False}.get(get("model.backbone.style")),
        "MODEL.PIXEL_MEAN": get("model.data_preprocessor.mean", "img_norm_cfg.mean"),
        "MODEL.PIXEL_STD": get("model.data_preprocessor.std", "img_norm_cfg.std"),
        "INPUT.FORMAT": {True: "RGB", False: "BGR"}.get(
            get("model.data_preprocessor.bgr_to_rgb", "img_norm_cfg.to_rgb")
        ),
        "MODEL.GUIDED_ANCHORING.SIGMA": get(
            f"model.{head}.approx_anchor_generator.octave_base_scale", f"model.{head}.octave_base_scale"
        ),
        "MODEL.GUIDED_ANCHORING.SHAPE_STD": _last(
            get(f"model.{head}.anchor_coder.target_stds", f"model.{head}.anchoring_stds")
        ),
        "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": get(f"model.{head}.loc_filter_thr"),
    }
    weights = "MODEL.RETINANET.BBOX_REG_WEIGHTS" if head == "bbox_head" else "MODEL.RPN.BBOX_REG_WEIGHTS"
    settings[weights] = _inverse(get(f"model.{head}.bbox_coder.target_stds", f"model.{head}.target_stds"))
    if head == "rpn_head":
        settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"] = _inverse(
            get(
                "model.roi_head.bbox_head.bbox_coder.target_stds",
                "model.roi_head.bbox_head.target_stds",
                "model.bbox_head.target_stds",
            )
        )
    return {key: value for key, value in settings.items() if value is not None}


def _last(values):
    return values[-1] if isinstance(values, list) and values else None


def _inverse(values):
    good = isinstance(values, list) and all(isinstance(v, (int, float)) and v for v in values)
    return [1 / v for v in values] if good else None


def _assignments(tree) -> dict:
    """The values that a configuration's text assigns to names, as far as they are written out: nothing is run."""
    names = {}

    def value(node):
        match node:
            case ast.Constant():
                return node.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [value(element) for element in elements]
            case ast.Dict(keys=keys, values=values):
                return {value(k): value(v) for k, v in zip(keys, values) if isinstance(k, ast.Constant)}
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                found = {}
                for keyword in keywords:
                    inner = value(keyword.value)
                    if keyword.arg is not None:
                        found[keyword.arg] = inner
                    elif isinstance(inner, dict):
                        found |= inner
                return found
            case ast.Name(id=name):
                return names.get(name)
        return None

    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = value(statement.value)
    return names


# ---- comparing ------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """A converted model beside one that a configuration builds."""

    matched: int
    missing: list[str]  # in the model, not in the checkpoint
    unexpected: list[str]  # in the checkpoint, not in the model
    shapes: list[str]  # in both, of different shapes
    settings: list[str]  # that the configuration has otherwise

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes or self.settings)

    def as_text(self, most: int = 10) -> str:
        lines = [f"{self.matched} parameters match in name and shape"]
        for name in ("missing", "unexpected", "shapes", "settings"):
            entries = getattr(self, name)
            what = {"shapes": "of another shape", "settings": "set otherwise"}.get(name, name)
            lines.append(f"{what}: {len(entries)}")
            lines += [f"  {entry}" for entry in entries[:most]]
            lines += [f"  ... and {len(entries) - most} more"] if len(entries) > most else []
        return "\n".join(lines)


def compare(converted: Converted, model: dict[str, torch.Tensor], cfg) -> Comparison:
    """Compares names and shapes with a model's state dict (detectron2's names), settings with its configuration.

    Counters of batches and what the model computes without parameters do not count.
    """
    ours = {name: tuple(v.shape) for name, v in model.items() if not name.endswith("num_batches_tracked")}
    theirs = {name: tuple(v.shape) for name, v in converted.state.items()}
    both = ours.keys() & theirs.keys()
    differing = sorted(name for name in both if ours[name] != theirs[name])
    settings = []
    for key, value in converted.settings.items():
        node = cfg
        for part in key.split("."):
            node = getattr(node, part)
        if not _equal(node, value):
            settings.append(f"{key}: {_shown(value)} in the checkpoint, {_shown(node)} in the configuration")
    return Comparison(
        len(both) - len(differing),
        sorted(ours.keys() - theirs.keys()),
        sorted(theirs.keys() - ours.keys()) + converted.unknown,
        [f"{name}: {theirs[name]} in the checkpoint, {ours[name]} in the model" for name in differing],
        settings,
    )


def _equal(ours, theirs):
    if isinstance(theirs, (list, tuple)):
        return isinstance(ours, (list, tuple)) and len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return abs(ours - theirs) <= 1e-3 * max(1, abs(theirs))
    return ours == theirs


def _shown(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
