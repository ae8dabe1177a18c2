"""Four panels per image, after the paper's Figures 4 and 5: locations, anchors, proposals, detections."""

import matplotlib

matplotlib.use("Agg")  # files only; no display needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from torch import Tensor

from ..modeling.results import GuidedAnchors, ImageResult
from ..ops import iou_match

TRUTH, HIT, MISS = "#00d45a", "#ffb000", "#ff2d55"
LEVEL_COLOURS = plt.get_cmap("tab10").colors
MOST_ANCHORS = 60  # drawn, most probable first: more would cover the image


def draw_panels(path, image, result: ImageResult, truth: Tensor | None, names: list[str], score_thresh=0.5):
    """Writes the panels of one image as a PNG.

    Args:
        image: RGB, anything numpy takes.
        truth: ground-truth boxes (G, 4), or None where they are not known.
        names: of the classes.
        score_thresh: detections below it are not drawn.
    """
    image = np.asarray(image)
    panels = []
    if result.guided is not None:
        panels += [_draw_probability, _draw_anchors]
    if result.proposals is not None:
        panels += [_draw_proposals]
    if result.boxes is not None:
        panels += [lambda *args: _draw_detections(*args, names, score_thresh)]
    height, width = image.shape[:2]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.6 * height / width + 0.5), layout="constrained", squeeze=False
    )
    for axis, draw in zip(axes[0], panels):
        axis.imshow(image)
        axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axis.set_title(draw(axis, image, result, truth), fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_boxes(axis, boxes, colour, width=1.0, **style):
    """Outlines of boxes (K, 4) on an axis."""
    patches = [Rectangle((x1, y1), x2 - x1, y2 - y1) for x1, y1, x2, y2 in np.asarray(boxes).tolist()]
    axis.add_collection(PatchCollection(patches, facecolor="none", edgecolor=colour, linewidth=width, **style))


def _legend(axis):
    """Below the image, which it must not cover."""
    labels = axis.get_legend_handles_labels()[1]
    if labels:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=6.5, frameon=False, handlelength=1.4)


def probability_map(anchors: GuidedAnchors, height: int, width: int) -> np.ndarray:
    """The most probable level at every pixel: (height, width)."""
    best = np.zeros((height, width))
    y, x = np.arange(height), np.arange(width)
    for level, stride in zip(anchors.probability, anchors.strides):
        rows = np.minimum((y / stride).astype(int), level.shape[0] - 1)
        columns = np.minimum((x / stride).astype(int), level.shape[1] - 1)
        best = np.maximum(best, level.numpy()[np.ix_(rows, columns)])
    return best


def _draw_probability(axis, image, result, truth):
    height, width = image.shape[:2]
    shown = axis.imshow(probability_map(result.guided, height, width), cmap="inferno", alpha=0.75, vmin=0, vmax=1)
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=6)
    return "location probability"


def _draw_anchors(axis, image, result, truth):
    anchors = result.guided
    order = anchors.scores.argsort(descending=True)[:MOST_ANCHORS]
    for level in anchors.levels[order].unique().tolist():
        chosen = order[anchors.levels[order] == level]
        colour = LEVEL_COLOURS[level % len(LEVEL_COLOURS)]
        draw_boxes(axis, anchors.boxes[chosen], colour, 0.7, alpha=0.7)
        axis.plot([], [], color=colour, label=f"stride {anchors.strides[level]:.3g}")
    _legend(axis)
    total = len(anchors.scores)
    return f"{total} active anchors" + (f" ({MOST_ANCHORS} most probable)" if total > MOST_ANCHORS else "")


def _draw_proposals(axis, image, result, truth):
    boxes = result.proposals[:100]
    if truth is None:
        draw_boxes(axis, boxes[:30], HIT, 0.8)
        return f"{min(30, len(boxes))} best of {len(result.proposals)} proposals"
    truth = truth.float()
    match = iou_match(boxes.float(), truth) if len(boxes) else None
    found = match.gt_iou >= 0.5 if match else torch.zeros(len(truth), dtype=torch.bool)
    draw_boxes(axis, truth[found], TRUTH, 1.6)
    draw_boxes(axis, truth[~found], MISS, 1.6)
    if match:
        draw_boxes(axis, boxes[match.gt_index[found]], HIT, 1.0, linestyle="--")
    for colour, label in ((TRUTH, "object, found"), (MISS, "object, missed"), (HIT, "its best proposal")):
        axis.plot([], [], color=colour, label=label)
    _legend(axis)
    return f"100 best proposals: {int(found.sum())} of {len(truth)} objects at IoU 0.5"


def _draw_detections(axis, image, result, truth, names, score_thresh):
    kept = result.scores >= score_thresh
    for box, score, label in zip(result.boxes[kept], result.scores[kept], result.classes[kept].tolist()):
        colour = LEVEL_COLOURS[label % len(LEVEL_COLOURS)]
        draw_boxes(axis, box[None], colour, 1.4)
        axis.text(
            float(box[0]), float(box[1]) - 1, f"{names[label]} {score:.2f}", fontsize=6, color="white",
            va="bottom", clip_on=True, bbox={"facecolor": colour, "alpha": 0.8, "pad": 0.8, "edgecolor": "none"},
        )  # fmt: skip
    return f"{int(kept.sum())} detections (score ≥ {score_thresh})"
