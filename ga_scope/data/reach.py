"""Which objects of a dataset the anchors of a configuration can reach, and on which level they are learnt."""

import numpy as np

from ..config import get
from ..config.keys import FIXED_ANCHORS, LOCATED, RETINANETS, SCOPENET, SHAPED
from ..config.rules import per_level
from .dataset import Dataset
from .images import resized_shape


def reach(cfg, dataset: Dataset) -> list[dict]:
    """A row per level of the model of a configuration, and one for all.

    ``learnt`` objects are those that the targets put on a level: the level of the best anchor; with guided anchors that
    of the size (section 3.4), with ScopeNet that of the range (3.2). They are ``reached`` where an anchor of that
    level, at the nearest location, has the IoU from which it is positive; or, with ScopeNet, where a location lies
    within. ``only as best`` are others that have an anchor all the same, the best of a box.

    Images are taken at INPUT.MIN_SIZE_TEST.
    """
    boxes = _resized(cfg, dataset)
    part = "SCOPENET" if SCOPENET.certain(cfg) else "RETINANET" if RETINANETS.certain(cfg) else "RPN"
    names = cfg.MODEL[part].IN_FEATURES
    strides = [2 ** int("".join(c for c in name if c.isdigit())) for name in names]
    if SCOPENET.certain(cfg):
        level, reached = _scopenet(cfg, boxes, strides)
        best = np.zeros_like(reached)
    elif SHAPED.certain(cfg) or FIXED_ANCHORS.certain(cfg):
        ious = np.stack([_best_iou(boxes, s, *_shapes(cfg, i, s, len(strides))) for i, s in enumerate(strides)])
        guided = SHAPED.certain(cfg)
        level = _guided_level(boxes, strides) if LOCATED.certain(cfg) else ious.argmax(0)
        low, high = _thresholds(cfg, guided)
        found = ious.max(0) if not LOCATED.certain(cfg) else np.take_along_axis(ious, level[None], 0)[0]
        reached, best = found >= high, (found < high) & (found >= low)
    else:
        return []
    rows = [
        {"level": name, "stride": s} | _counted(level == i, reached, best)
        for i, (name, s) in enumerate(zip(names, strides))
    ]
    return [*rows, {"level": "all", "stride": ""} | _counted(np.ones(len(boxes), dtype=bool), reached, best)]


def _counted(chosen, reached, best) -> dict[str, int]:
    return {
        "learnt": int(chosen.sum()),
        "reached": int((chosen & reached).sum()),
        "only as best": int((chosen & best).sum()),
        "never": int((chosen & ~reached & ~best).sum()),
    }


def _resized(cfg, dataset: Dataset) -> np.ndarray:
    """The objects (G, 4), centre and sides, in the images that the network sees."""
    found = [np.zeros((0, 4))]
    for i in range(len(dataset)):
        size = int(dataset.heights[i]), int(dataset.widths[i])
        height, width = resized_shape(*size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        x1, y1, x2, y2 = dataset.objects(i)[0].T * np.array([[width / size[1], height / size[0]] * 2]).T
        found.append(np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1))
    return np.concatenate(found)


def _shapes(cfg, level: int, stride: int, levels: int) -> tuple[np.ndarray, float]:
    """The anchors' (widths, heights) (K, 2) on a level, and where in its cell a location stands."""
    ga = cfg.MODEL.GUIDED_ANCHORING
    if not SHAPED.certain(cfg):
        sizes, ratios = (per_level(cfg, key, levels)[level] for key in ("SIZES", "ASPECT_RATIOS"))
        offset = ga.CELL_OFFSET if LOCATED.certain(cfg) else cfg.MODEL.ANCHOR_GENERATOR.OFFSET
    elif ga.SHAPE.MODE == "sampled":
        sizes, ratios, offset = [ga.SIGMA * stride * s for s in ga.SHAPE.SCALES], ga.SHAPE.RATIOS, ga.CELL_OFFSET
    else:
        return np.array(ga.SHAPE.SIZE_RANGE) * ga.SIGMA * stride, ga.CELL_OFFSET
    return np.array([(s * r**-0.5, s * r**0.5) for s in sizes for r in ratios]), offset


def _best_iou(boxes, stride, shapes, offset) -> np.ndarray:
    """(G,) the best IoU of a box with the anchors at the nearest location; a range of sides holds any anchor within."""
    best = np.zeros(len(boxes))
    away = np.abs(boxes[:, :2] - (np.rint(boxes[:, :2] / stride - offset) + offset) * stride)
    sides = boxes[:, 2:]
    for anchor in [np.clip(sides, *shapes)] if shapes.ndim == 1 else shapes:
        common = np.minimum(sides, anchor)
        inter = np.clip(np.minimum(common, (sides + anchor) / 2 - away), 0, None).prod(1)
        best = np.maximum(best, inter / (sides.prod(1) + np.prod(anchor, -1) - inter))
    return best


def _guided_level(boxes, strides) -> np.ndarray:
    """clamp(floor(log2(sqrt(w h) / (8 stride_0)) + 1/2)): ga_scope/modeling/guided_anchoring/targets.py."""
    level = np.floor(np.log2(np.sqrt(boxes[:, 2:].prod(1)) / (8 * strides[0])) + 0.5)
    return np.clip(level, 0, len(strides) - 1).astype(int)


def _thresholds(cfg, guided: bool) -> tuple[float, float]:
    """The IoU from which a box's best anchor is positive, and from which every anchor is."""
    if guided:
        keys = cfg.MODEL.GUIDED_ANCHORING.SHAPE
        return keys.LOW_QUALITY_IOU, keys.IOU_THRESHOLDS[1]
    part = "RETINANET" if RETINANETS.certain(cfg) else "RPN"
    return 0.0, get(cfg, f"MODEL.{part}.IOU_THRESHOLDS")[1]


def _scopenet(cfg, boxes, strides) -> tuple[np.ndarray, np.ndarray]:
    """The level of each box's range, and whether a location near its centre lies inside it."""
    keys = cfg.MODEL.SCOPENET.TARGETS
    level = np.searchsorted(keys.RANGES, boxes[:, 2:].max(1) / 2, side="right")
    stride = np.array(strides)[level][:, None]
    away = np.abs(boxes[:, :2] - (np.floor(boxes[:, :2] / stride) + 0.5) * stride)
    return level, ((away < boxes[:, 2:] / 2) & (away <= keys.CENTER_RADII[1] * stride)).all(1)
