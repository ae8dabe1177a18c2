"""The paper's Figures 3 to 6 from trained models."""

import math

import matplotlib

matplotlib.use("Agg")  # files only; no display needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from ..config.build import fixed_shapes
from ..data import Dataset
from ..modeling.results import GuidedAnchors
from ..ops import iou_match
from ..visualization.panels import HIT, MISS, TRUTH, draw_boxes, probability_map

GA_COLOUR, SLIDING_COLOUR, TRUTH_COLOUR = "#d62728", "#1f77b4", "#2ca02c"
DPI = 130
SHOWN_ANCHORS = 40  # most probable first: more would cover the image


def truth_of(dataset: Dataset, index: int) -> Tensor:
    """The boxes (G, 4) of an image's objects, without crowds."""
    return torch.from_numpy(dataset.objects(index)[0]).float()


def _save(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)


def proposal_overlaps(detector, dataset: Dataset) -> np.ndarray:
    """The IoU of every proposal of all images with its best object."""
    overlaps = []
    for index, found in enumerate(detector.stream(dataset)):
        boxes, truth = found.proposals.float(), truth_of(dataset, index)
        overlaps.append(iou_match(boxes, truth).iou.numpy() if len(truth) else np.zeros(len(boxes)))
    return np.concatenate(overlaps)


def draw_overlaps(path, overlaps: dict[str, np.ndarray], images: int):
    """Figure 3: proposals per image with at least an IoU, over decreasing IoU.

    The scale is logarithmic: few proposals overlap an object well, and those are what the two differ in.
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    at = np.linspace(0.5, 1, 101)
    for (name, values), colour in zip(overlaps.items(), (SLIDING_COLOUR, GA_COLOUR)):
        counts = np.array([(values >= x).sum() / images for x in at])
        label = f"{name} ({len(values) / images:.0f} proposals per image)"
        axis.plot(at[counts > 0], counts[counts > 0], color=colour, label=label, linewidth=2)
    axis.set(xlim=(1, 0.5), yscale="log", xlabel="IoU with an object, at least", ylabel="proposals per image")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    _save(figure, path)


def aspect_map(guided: GuidedAnchors, height: int, width: int) -> np.ndarray:
    """log2(h / w) of the anchor of the most probable level at every pixel."""
    sides = guided.everywhere[:, 2:] - guided.everywhere[:, :2]
    ratios = torch.log2(sides[:, 1] / sides[:, 0]).split([level.numel() for level in guided.probability])
    best, shown = np.full((height, width), -1.0), np.zeros((height, width))
    for level, ratio in zip(guided.probability, ratios):
        rows = np.arange(height) * level.shape[0] // height
        columns = np.arange(width) * level.shape[1] // width
        p, r = (values.numpy()[np.ix_(rows, columns)] for values in (level, ratio.view_as(level)))
        shown = np.where(p > best, r, shown)
        best = np.maximum(best, p)
    return shown


def draw_anchor_maps(path, results):
    """Figure 4: image with active anchors, location probability, predicted aspect ratio; a row for each result."""
    figure, axes = plt.subplots(len(results), 3, figsize=(9, 2.9 * len(results)), layout="constrained", squeeze=False)
    for row, found in zip(axes, results):
        image, anchors = np.asarray(found.image), found.guided
        height, width = image.shape[:2]
        row[0].imshow(image)
        order = anchors.scores.argsort(descending=True)[:SHOWN_ANCHORS]
        draw_boxes(row[0], anchors.boxes[order], HIT, 0.7, alpha=0.8)
        row[0].set_title(f"{len(anchors.scores)} active anchors, the {len(order)} most probable", fontsize=9)
        shown = row[1].imshow(probability_map(anchors, height, width), cmap="inferno", vmin=0, vmax=1)
        row[1].set_title("location probability", fontsize=9)
        figure.colorbar(shown, ax=row[1], shrink=0.8).ax.tick_params(labelsize=7)
        ratio = row[2].imshow(aspect_map(anchors, height, width), cmap="coolwarm", vmin=-2, vmax=2)
        row[2].set_title("aspect ratio of the anchors", fontsize=9)
        bar = figure.colorbar(ratio, ax=row[2], shrink=0.8, ticks=[-2, -1, 0, 1, 2])
        bar.ax.set_yticklabels(["1:4 wide", "1:2", "1:1", "2:1", "4:1 tall"], fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _save(figure, path)


def draw_proposals(path, results: dict, truths: list[Tensor], count: int = 100):
    """Figure 5: objects, and the best of each model's ``count`` first proposals for them.

    Args:
        results: {name of the model: a result per image}; a row for each.
        truths: the objects (G, 4) of the images.
    """
    figure, axes = plt.subplots(
        len(results), len(truths), figsize=(2.6 * len(truths), 2.9 * len(results)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for row, (name, of_model) in zip(axes, results.items()):
        for axis, found, truth in zip(row, of_model, truths):
            image, boxes = np.asarray(found.image), found.proposals[:count].float()
            match = iou_match(boxes, truth)
            hit = match.gt_iou >= 0.5
            axis.imshow(image)
            draw_boxes(axis, truth[hit], TRUTH, 1.6)
            draw_boxes(axis, truth[~hit], MISS, 1.6)
            draw_boxes(axis, boxes[match.gt_index[hit]], HIT, 1.2, linestyle="--")
            iou = f", mean IoU {float(match.gt_iou[hit].mean()):.2f}" if hit.any() else ""
            axis.set_title(f"{name}: {int(hit.sum())} of {len(truth)}{iou}", fontsize=8.5)
            height, width = image.shape[:2]
            axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for colour, style, label in ((TRUTH, "-", "object, found at IoU 0.5"), (MISS, "-", "object, missed"),
                                 (HIT, "--", f"its best of {count} proposals")):  # fmt: skip
        axes[0, 0].plot([], [], color=colour, linestyle=style, label=label)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def anchor_statistics(detector, dataset: Dataset):
    """Scales sqrt(w h) and ratios h / w of the objects and of the active anchors, in pixels of the image files."""
    sides = {"objects": [], "guided anchors": []}
    for index, found in enumerate(detector.stream(dataset, maps=True)):
        for name, boxes in (("objects", truth_of(dataset, index)), ("guided anchors", found.guided.boxes)):
            sides[name].append((boxes[:, 2:] - boxes[:, :2]).numpy())
    return {name: np.concatenate(parts) for name, parts in sides.items()}


def _octave(side) -> int:
    """The power of two, 32 to 1024 px, that a side does not exceed."""
    return min(max(math.ceil(math.log2(side)), 5), 10)


def draw_distributions(path, sides: dict[str, np.ndarray], sliding: np.ndarray):
    """Figure 6: densities of scale and aspect ratio of objects and guided anchors, and the sliding-window ones."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.3), layout="constrained")
    largest = max(np.sqrt(s.prod(1)).max() for s in (*sides.values(), sliding) if len(s))
    quantities = (
        (lambda s: np.log2(np.sqrt(s.prod(1))), "scale √(w h), px", [2**i for i in range(3, _octave(largest) + 1)]),
        (lambda s: np.log2(s[:, 1] / s[:, 0]), "aspect ratio h / w", [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]),
    )
    for axis, (quantity, label, ticks) in zip(axes, quantities):
        low, high = math.log2(ticks[0]), math.log2(ticks[-1])
        bins = np.linspace(low, high, 31)
        for (name, values), colour in zip(sides.items(), (TRUTH_COLOUR, GA_COLOUR)):
            density, _ = np.histogram(np.clip(quantity(values), low, high), bins, density=True)
            axis.stairs(density, bins, fill=True, alpha=0.35, color=colour)
            axis.stairs(density, bins, color=colour, label=name)
        for i, value in enumerate(sorted(set(np.round(quantity(sliding), 3)))):
            axis.axvline(value, color=SLIDING_COLOUR, linestyle=":", label=None if i else "sliding-window anchors")
        names = [f"{t:g}" if t >= 1 else f"1/{round(1 / t)}" for t in ticks]
        axis.set(xlabel=label, ylabel="density per octave", xlim=(low, high))
        axis.set_xticks([math.log2(t) for t in ticks], names)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def draw(name: str, path, rpn, guided, dataset: Dataset):
    """Figure 3, 4, 5 or 6.

    Args:
        rpn, guided: a trained RPN and GA-RPN, :class:`ga_scope.Detector`.
    """
    if name == "3":
        overlaps = {"RPN": proposal_overlaps(rpn, dataset), "GA-RPN": proposal_overlaps(guided, dataset)}
        draw_overlaps(path, overlaps, len(dataset))
        return
    if name == "6":
        sliding = fixed_shapes(rpn.cfg, len(rpn.cfg.MODEL.RPN.IN_FEATURES)).level_sides.flatten(0, 1).numpy()
        draw_distributions(path, anchor_statistics(guided, dataset), sliding)
        return
    several = [index for index in range(len(dataset)) if len(dataset.objects(index)[0]) >= 2][: 3 if name == "4" else 4]
    records = [dataset[index] for index in several]
    if name == "4":
        draw_anchor_maps(path, list(guided.stream(records, maps=True)))
    else:
        results = {"RPN": list(rpn.stream(records)), "GA-RPN": list(guided.stream(records))}
        draw_proposals(path, results, [truth_of(dataset, index) for index in several])
