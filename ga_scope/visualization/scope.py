"""What ScopeNet knows of each side of a box, and how good its scores and anchors are."""

import itertools

import matplotlib

matplotlib.use("Agg")  # files only; no display needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from ..modeling.pyramid import Pyramid
from ..modeling.results import ImageResult
from ..modeling.scope import ScopeBins, ScopeDetector
from ..ops import iou_match

SIDES = ("left", "top", "right", "bottom")
COLOURS = plt.get_cmap("tab10").colors
TRUTH = "#00d45a"


def draw_scopes(path, image, result: ImageResult, bins: ScopeBins, truth, names, score_thresh=0.3, most=3):
    """Writes the detections of an image and, for the ``most`` best, the bins of every side.

    Args:
        truth: boxes (G, 4), or None where they are not known.
        names: of the classes.
    """
    image = np.asarray(image)
    kept = (result.scores >= score_thresh).nonzero()[:, 0]
    rows = max(1, min(most, len(kept)))
    figure = plt.figure(figsize=(3.4 * rows + 5, 1.75 * rows + 0.6), layout="constrained")
    grid = figure.add_gridspec(rows, 6)
    axis = figure.add_subplot(grid[:, :2])
    axis.imshow(image)
    axis.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    for box in [] if truth is None else truth:
        _box(axis, box, TRUTH, 1.0, linestyle="--")
    for rank, index in reversed(list(enumerate(kept.tolist()))):  # the best on top
        colour = COLOURS[rank % len(COLOURS)] if rank < most else "#888888"
        _box(axis, result.boxes[index], colour, 1.6)
        axis.plot(*result.scopes.points[index].tolist(), "o", color=colour, markersize=3, markeredgecolor="white")
        label = f"{names[int(result.classes[index])]} {result.scores[index]:.2f}"
        axis.text(
            float(result.boxes[index, 0]), float(result.boxes[index, 1]) - 1, label, fontsize=6, color="white",
            va="bottom", clip_on=True, bbox={"facecolor": colour, "alpha": 0.8, "pad": 0.8, "edgecolor": "none"},
        )  # fmt: skip
    axis.set_title(f"{len(kept)} detections (score ≥ {score_thresh}); dashed: objects", fontsize=8)
    edges = [0, *bins.boundaries, 8]
    for rank, index in enumerate(kept[:most].tolist()):
        colour = COLOURS[rank % len(COLOURS)]
        sides = _distances(result, index)
        for side, name in enumerate(SIDES):
            plot = figure.add_subplot(grid[rank, 2 + side])
            plot.bar(range(bins.count), result.scopes.probabilities[index, side], color=colour)
            plot.set(ylim=(0, 1), yticks=(0, 0.5, 1) if side == 0 else (), xticks=range(bins.count))
            plot.set_xticklabels([f"{a:g}–{b:g}" for a, b in itertools.pairwise(edges)], fontsize=5)
            plot.tick_params(axis="y", labelsize=6)
            plot.set_title(f"{name}: {sides[side]:.2f} strides", fontsize=7)
            if side == 0:
                scores = f"{result.scopes.class_scores[index]:.2f} · {result.scopes.localization_scores[index]:.2f}"
                plot.set_ylabel(f"{names[int(result.classes[index])]}\n{scores}", fontsize=6, color=colour)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _box(axis, box, colour, width, **style):
    x1, y1, x2, y2 = (float(v) for v in box)
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, **style))


def _distances(result, index):
    x, y = result.scopes.points[index].tolist()
    x1, y1, x2, y2 = result.boxes[index].tolist()
    return [d / float(result.scopes.strides[index]) for d in (x - x1, y - y1, x2 - x, y2 - y)]


def learned_distances(detector: ScopeDetector, sizes, gt_boxes) -> Tensor:
    """Distances (L, 4), in strides, that the detector has to learn, of images (height, width) with their boxes."""
    found = []
    for (height, width), boxes in zip(sizes, gt_boxes):
        levels = tuple((-(-height // s), -(-width // s)) for s in detector.strides)
        pyramid = Pyramid(1, levels, detector.strides)
        index = detector.targets(pyramid, [boxes]).localization[0]
        places = (index >= 0).nonzero()[:, 0]
        center, stride = pyramid.centers("cpu")[places], pyramid.per_level(detector.strides, "cpu")[places, None]
        box = boxes[index[places]]
        found.append(torch.cat([center - box[:, :2], box[:, 2:] - center], 1) / stride)
    return torch.cat(found)


def draw_anchors(path, detector: ScopeDetector, distances: Tensor):
    """Writes the learned anchors 2^{a_n} over the histogram of the data's distances (:func:`learned_distances`)."""
    bins = detector.head.bins
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axis.hist(distances.flatten().log2().clamp(min=-6), bins=80, color="#b8c4d6", label="distances to learn")
    for n, boundary in enumerate(bins.boundaries):
        axis.axvline(np.log2(boundary), color="#777777", linewidth=0.8, label="limits of the bins" if n == 0 else None)
    learned = detector.head.log_anchors.detach().cpu().tolist()
    for n, (start, end) in enumerate(zip(bins.log_centers, learned)):
        axis.axvline(start, color="#1f77b4", linestyle=":", label="anchors at the start" if n == 0 else None)
        axis.axvline(end, color="#d62728", label="learned anchors" if n == 0 else None)
        axis.text(end, axis.get_ylim()[1] * 0.97, f" {2**end:.2f}", fontsize=7, color="#d62728", va="top")
    axis.set(xlabel="log2 of the distance to a side, in strides", ylabel="sides of positive locations")
    axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def true_ious(result: ImageResult, boxes: Tensor) -> Tensor:
    """IoU (D,) of every detection with the object that it fits best, of any class."""
    if not len(boxes):
        return torch.zeros(len(result.boxes))
    return iou_match(result.boxes.float(), boxes.float()).iou


def draw_scores(path, ious: Tensor, scores: dict[str, Tensor]) -> dict[str, float]:
    """Writes the true IoU (D,) of detections against each score (D,); returns the rank correlations (Spearman)."""
    size = (3.6 * len(scores), 3.4)
    figure, axes = plt.subplots(1, len(scores), figsize=size, layout="constrained", sharey=True, squeeze=False)
    correlations = {}
    for axis, (name, values) in zip(axes[0], scores.items()):
        correlations[name] = rank_correlation(values, ious)
        axis.scatter(values, ious, s=4, alpha=0.3, linewidth=0, color="#1f77b4")
        parts = [p for p in values.argsort().chunk(10) if len(p)]
        means = [values[p].mean() for p in parts], [ious[p].mean() for p in parts]
        axis.plot(*means, "o-", color="#d62728", markersize=3, label="mean of each tenth")
        axis.set(xlabel=name, xlim=(0, 1), ylim=(0, 1), title=f"rank correlation {correlations[name]:.3f}")
        axis.legend(fontsize=7, frameon=False, loc="lower right")
    axes[0, 0].set_ylabel("IoU with the best object")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return correlations


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: equal values share the mean of their ranks. nan for fewer than two."""
    if len(a) < 2:
        return float("nan")
    ranks = []
    for values in (a, b):
        _, group, count = values.unique(return_inverse=True, return_counts=True)
        ranks.append((count.cumsum(0) - (count - 1) / 2)[group])
    return float(torch.corrcoef(torch.stack(ranks).double())[0, 1])
