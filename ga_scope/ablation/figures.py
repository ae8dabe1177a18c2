"""The paper's Figures 3 to 6 from trained models."""

import math

import matplotlib

matplotlib.use("Agg")  # files only; no display needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..modeling.pyramid import Pyramid
from ..ops import iou_match
from ..visualization.panels import HIT, MISS, TRUTH, draw_boxes, probability_map

GA_COLOUR, SLIDING_COLOUR, TRUTH_COLOUR = "#d62728", "#1f77b4", "#2ca02c"
DPI = 130
SHOWN_ANCHORS = 40  # most probable first: more would cover the image


def truth_of(record: dict) -> Tensor:
    """The boxes (G, 4) of an image's objects, without crowds."""
    boxes = torch.tensor([a["bbox"] for a in record["annotations"] if not a["iscrowd"]]).view(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).float()


def _read(record):
    with Image.open(record["file_name"]) as file:
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))


def _save(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)


def proposal_overlaps(predictor, records) -> np.ndarray:
    """The IoU of every proposal of all images with its best object."""
    found = []
    for record in records:
        boxes, truth = predictor(record).proposals.float(), truth_of(record)
        found.append(iou_match(boxes, truth).iou.numpy() if len(truth) else np.zeros(len(boxes)))
    return np.concatenate(found)


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


@torch.no_grad()
def aspect_map(predictor, height: int, width: int) -> np.ndarray:
    """log2(h / w) of the anchor of the most probable level at every pixel, of the image last predicted."""
    rpn, features = predictor.tap.rpn, predictor.tap.features
    pyramid = Pyramid.of(features, rpn.strides, rpn.cell_offset)
    _, logits, deltas = rpn.head.generate(pyramid, features)
    ratio = rpn.shapes.std * (deltas[0, :, 1] - deltas[0, :, 0]) / math.log(2)
    best, shown = np.full((height, width), -1.0), np.zeros((height, width))
    for p, r in zip(pyramid.split(logits.sigmoid().cpu()), pyramid.split(ratio[None].cpu())):
        p, r = p[0].numpy(), r[0].numpy()
        rows = np.minimum(np.arange(height) * p.shape[0] // height, p.shape[0] - 1)
        columns = np.minimum(np.arange(width) * p.shape[1] // width, p.shape[1] - 1)
        p, r = p[np.ix_(rows, columns)], r[np.ix_(rows, columns)]
        shown = np.where(p > best, r, shown)
        best = np.maximum(best, p)
    return shown


def draw_anchor_maps(path, predictor, records):
    """Figure 4: image with active anchors, location probability, predicted aspect ratio."""
    figure, axes = plt.subplots(len(records), 3, figsize=(9, 2.9 * len(records)), layout="constrained", squeeze=False)
    for row, record in zip(axes, records):
        image, anchors = _read(record), predictor(record).anchors
        height, width = image.shape[:2]
        row[0].imshow(image)
        order = anchors.scores.argsort(descending=True)[:SHOWN_ANCHORS]
        draw_boxes(row[0], anchors.boxes[order], HIT, 0.7, alpha=0.8)
        row[0].set_title(f"{len(anchors.scores)} active anchors, the {len(order)} most probable", fontsize=9)
        shown = row[1].imshow(probability_map(anchors, height, width), cmap="inferno", vmin=0, vmax=1)
        row[1].set_title("location probability", fontsize=9)
        figure.colorbar(shown, ax=row[1], shrink=0.8).ax.tick_params(labelsize=7)
        ratio = row[2].imshow(aspect_map(predictor, height, width), cmap="coolwarm", vmin=-2, vmax=2)
        row[2].set_title("aspect ratio of the anchors", fontsize=9)
        bar = figure.colorbar(ratio, ax=row[2], shrink=0.8, ticks=[-2, -1, 0, 1, 2])
        bar.ax.set_yticklabels(["1:4 wide", "1:2", "1:1", "2:1", "4:1 tall"], fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _save(figure, path)


def draw_proposals(path, predictors: dict, records, count: int = 100):
    """Figure 5: objects, and the best of each model's ``count`` first proposals for them; a row for each model."""
    figure, axes = plt.subplots(
        len(predictors), len(records), figsize=(2.6 * len(records), 2.9 * len(predictors)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for row, (name, predictor) in zip(axes, predictors.items()):
        for axis, record in zip(row, records):
            image, truth = _read(record), truth_of(record)
            boxes = predictor(record).proposals[:count].float()
            match = iou_match(boxes, truth)
            found = match.gt_iou >= 0.5
            axis.imshow(image)
            draw_boxes(axis, truth[found], TRUTH, 1.6)
            draw_boxes(axis, truth[~found], MISS, 1.6)
            draw_boxes(axis, boxes[match.gt_index[found]], HIT, 1.2, linestyle="--")
            iou = f", mean IoU {float(match.gt_iou[found].mean()):.2f}" if found.any() else ""
            axis.set_title(f"{name}: {int(found.sum())} of {len(truth)}{iou}", fontsize=8.5)
            height, width = image.shape[:2]
            axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for colour, style, label in ((TRUTH, "-", "object, found at IoU 0.5"), (MISS, "-", "object, missed"),
                                 (HIT, "--", f"its best of {count} proposals")):  # fmt: skip
        axes[0, 0].plot([], [], color=colour, linestyle=style, label=label)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def anchor_statistics(predictor, records):
    """Scales sqrt(w h) and ratios h / w of the objects and of the active anchors, in pixels of the image files."""
    sides = {"objects": [], "guided anchors": []}
    for record in records:
        for name, boxes in (("objects", truth_of(record)), ("guided anchors", predictor(record).anchors.boxes)):
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
