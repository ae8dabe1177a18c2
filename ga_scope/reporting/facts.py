"""Everything that a report says of a run: numbers, and crops of what went wrong."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..api import Detected, Detector
from ..data import Dataset, read_image
from ..evaluation import Evaluation
from ..evaluation.coco import accumulated
from ..evaluation.explanation import diagnose, diagnosis_of
from ..evaluation.matching import NOTHING, REGION, best_f1, match, overlaps
from ..visualization.panels import probability_map
from ..visualization.scope import rank_correlation
from .curves import Curves, read_curves

CROP = 176  # pixels of a picture of the galleries
WORST = 24  # pictures of a gallery
PROPOSALS = 100  # of an image, that recall is measured with
SIDES = (0, 8, 16, 32, 64, 96, 128, 256, float("inf"))
RATIOS = (0, 1 / 4, 1 / 2, 1 / 1.25, 1.25, 2, 4, float("inf"))
GREEN, ORANGE, RED = (0, 190, 80), (255, 150, 0), (255, 45, 85)


@dataclass
class Picture:
    """A crop for a gallery: the image, and beside it the location map where the model has one."""

    title: str
    text: str
    image: str  # data URI
    locations: str | None = None


@dataclass
class Facts:
    """Of one run, as plain data.

    Attributes:
        metrics: of the evaluation, fractions.
        classes: their names.
        per_class: name, objects, AP, AP50, AP75.
        precision: (label, 101 precisions at recalls 0, 0.01, ... 1), of all classes at three IoUs and of each at 0.5.
        threshold, f1: the score of the best F1, and that F1.
        confusion: (classes + 1, classes + 1) objects by class, in rows, against what was said; the last row is
            detections of nothing, the last column objects that nothing was said of. From ``threshold`` on.
        recalls: by part (``side``, ``ratio``) and curve (detections, proposals): the share found, nan without objects.
        counts: by part, the objects in each bin.
        calibration: by score: mean score, mean IoU, share right, of each tenth of the detections, and the rank
            correlation of score and IoU.
        diagnosis: of a GA-RPN.
        misses, alarms: galleries.
        found: of every object whether it was, from ``threshold`` on; for comparisons.
    """

    name: str
    summary: list[tuple[str, str]]
    curves: Curves
    metrics: dict[str, float]
    classes: tuple[str, ...] = ()
    per_class: list[tuple] = field(default_factory=list)
    precision: list[tuple[str, list[float]]] = field(default_factory=list)
    threshold: float = 1.0
    f1: float = 0.0
    confusion: np.ndarray | None = None
    recalls: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    calibration: dict[str, tuple] = field(default_factory=dict)
    diagnosis: dict | None = None
    misses: list[Picture] = field(default_factory=list)
    alarms: list[Picture] = field(default_factory=list)
    found: dict[tuple[str, int], bool] = field(default_factory=dict)


@dataclass
class _Seen:
    """What one image leaves behind."""

    index: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    truth_labels: np.ndarray
    regions: np.ndarray
    objects: np.ndarray  # of the classes' matches
    iou: np.ndarray
    best: np.ndarray
    proposed: np.ndarray | None  # (G,) whether one of the best proposals covers the object
    parts: dict[str, np.ndarray]  # scores by name
    locations: np.ndarray | None  # small uint8 map


def collect(detector: Detector, dataset: Dataset, folder=None, name: str | None = None) -> Facts:
    """Runs a detector on a dataset with annotations.

    Args:
        folder: OUTPUT_DIR of its training, for the curves; None: there are none.
        name: of the run (default: that of the folder).
    """
    evaluation = Evaluation(dataset, detector.cfg.TEST.DETECTIONS_PER_IMAGE)
    diagnosis = diagnosis_of(detector)
    seen: list[_Seen] = []
    for index, found in enumerate(tqdm(detector.stream(dataset, maps=True), total=len(dataset), unit="image")):
        evaluation.add(found.record["image_id"], found)
        if diagnosis is not None:
            diagnose(diagnosis, detector.cfg, dataset, index, found)
        seen.append(_see(dataset, index, found))
    summary = _summary(detector, dataset)
    curves = read_curves(folder, dataset.name) if folder else Curves({}, {})
    facts = Facts(name or Path(folder or "model").name, summary, curves, evaluation.metrics())
    if diagnosis is not None:
        facts.diagnosis = diagnosis.as_dict()
    with_boxes = any(result.boxes is not None for result in evaluation.results.values())
    if with_boxes:
        facts.classes = dataset.classes
        _classes(facts, dataset, evaluation)
        _threshold(facts, seen)
        _confusion(facts, seen)
        _calibration(facts, seen)
        _galleries(facts, dataset, seen)
    _recalls(facts, seen, with_boxes)
    return facts


def _summary(detector, dataset) -> list[tuple[str, str]]:
    cfg = detector.cfg
    rows = [("model", cfg.MODEL.META_ARCHITECTURE)]
    if cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "ProposalNetwork"):
        rows.append(("proposals", cfg.MODEL.PROPOSAL_GENERATOR.NAME))
    parameters = sum(p.numel() for p in detector.model.parameters()) / 1e6
    return [
        *rows,
        ("parameters", f"{parameters:.1f} million"),
        ("weights", str(cfg.MODEL.WEIGHTS)),
        ("engine", detector.engine.name),
        ("steps", f"{cfg.SOLVER.MAX_ITER} of {cfg.SOLVER.IMS_PER_BATCH} images"),
        ("tested on", f"{dataset.name}: {len(dataset)} images"),
        ("input", f"shorter side {cfg.INPUT.MIN_SIZE_TEST} px, at most {cfg.INPUT.MAX_SIZE_TEST}"),
    ]


def _see(dataset: Dataset, index: int, found: Detected) -> _Seen:
    truth, truth_labels = dataset.objects(index)
    regions = dataset[index]["ignore_boxes"]
    empty = np.zeros((0, 4))
    boxes = empty if found.boxes is None else found.boxes.double().numpy()
    scores = np.zeros(0) if found.boxes is None else found.scores.double().numpy()
    labels = np.zeros(0, dtype=int) if found.boxes is None else found.classes.numpy()
    matches = match(boxes, labels, truth, truth_labels, regions)
    proposed = None
    if found.proposals is not None:
        cover = overlaps(found.proposals[:PROPOSALS].double().numpy(), truth)
        proposed = (cover >= 0.5).any(0)
    parts = {}
    if found.scopes is not None:
        parts = {
            "p_cls": found.scopes.class_scores.double().numpy(),
            "p_loc": found.scopes.localization_scores.double().numpy(),
        }
    locations = None
    if found.guided is not None:
        height, width = found.record["height"], found.record["width"]
        scale = min(1, 320 / max(height, width))
        whole = probability_map(found.guided, height, width)
        small = Image.fromarray((whole * 255).astype(np.uint8)).resize(
            (max(1, round(width * scale)), max(1, round(height * scale)))
        )
        locations = np.asarray(small)
    return _Seen(
        index, boxes, scores, labels, truth, truth_labels, regions, matches.objects, matches.iou, matches.best,
        proposed, parts, locations,
    )  # fmt: skip


def _classes(facts: Facts, dataset, evaluation):
    precision = accumulated(dataset, evaluation.detections())["precision"][:, :, :, 0, -1]  # (IoUs, recalls, classes)
    objects = np.bincount(dataset.annotations.labels, minlength=len(dataset.classes))
    mean = lambda values: float(values[values > -1].mean()) if (values > -1).any() else float("nan")  # noqa: E731
    for k, name in enumerate(dataset.classes):
        of_class = precision[:, :, k]
        facts.per_class.append((name, int(objects[k]), mean(of_class), mean(of_class[0]), mean(of_class[5])))
    there = (precision > -1).all((0, 1))
    for row, iou in ((0, "0.50"), (5, "0.75"), (8, "0.90")):
        if there.any():
            facts.precision.append((f"all, IoU {iou}", precision[row][:, there].mean(1).tolist()))
    for k, name in enumerate(dataset.classes):
        if there[k]:
            facts.precision.append((name, precision[0, :, k].tolist()))


def _threshold(facts: Facts, seen: list[_Seen]):
    counted = [one.objects != REGION for one in seen]
    scores = np.concatenate([one.scores[kept] for one, kept in zip(seen, counted)])
    right = np.concatenate([one.objects[kept] >= 0 for one, kept in zip(seen, counted)])
    facts.threshold, facts.f1 = best_f1(scores, right, sum(len(one.truth) for one in seen))


def _confusion(facts: Facts, seen: list[_Seen]):
    size = len(facts.classes)
    table = np.zeros((size + 1, size + 1), dtype=int)
    for one in seen:
        kept = one.scores >= facts.threshold
        labels = one.labels[kept]
        found = match(one.boxes[kept], labels, one.truth, one.truth_labels, one.regions, any_class=True).objects
        hits = found >= 0
        np.add.at(table, (one.truth_labels[found[hits]], labels[hits]), 1)
        np.add.at(table, (np.full(int((found == NOTHING).sum()), size), labels[found == NOTHING]), 1)
        missed = np.setdiff1d(np.arange(len(one.truth)), found[hits])
        np.add.at(table, (one.truth_labels[missed], np.full(len(missed), size)), 1)
    facts.confusion = table


def _calibration(facts: Facts, seen: list[_Seen]):
    counted = [one.objects != REGION for one in seen]
    iou = np.concatenate([one.iou[kept] for one, kept in zip(seen, counted)])
    right = np.concatenate([one.objects[kept] >= 0 for one, kept in zip(seen, counted)])
    names = {"score": [one.scores[kept] for one, kept in zip(seen, counted)]}
    for name in ("p_cls", "p_loc"):
        if all(name in one.parts for one in seen):
            names[name] = [one.parts[name][kept] for one, kept in zip(seen, counted)]
    for name, values in names.items():
        score = np.concatenate(values)
        rows = []
        for part in np.array_split(np.argsort(score, kind="stable"), 10):
            if len(part):
                rows.append((float(score[part].mean()), float(iou[part].mean()), float(right[part].mean())))
        correlation = rank_correlation(torch.from_numpy(score), torch.from_numpy(iou))
        facts.calibration[name] = (rows, correlation, len(score))


def _recalls(facts: Facts, seen: list[_Seen], with_boxes: bool):
    truth = np.concatenate([one.truth for one in seen]) if seen else np.zeros((0, 4))
    width, height = (truth[:, 2:] - truth[:, :2]).T
    curves = {}
    if with_boxes:
        curves["detections"] = np.concatenate([np.isin(np.arange(len(one.truth)), one.objects) for one in seen])
    if all(one.proposed is not None for one in seen):
        curves[f"{PROPOSALS} proposals"] = np.concatenate([one.proposed for one in seen])
    for part, values, edges in (("side", np.sqrt(width * height), SIDES), ("ratio", height / width, RATIOS)):
        bins = np.digitize(values, edges) - 1
        facts.counts[part] = np.bincount(bins, minlength=len(edges) - 1).tolist()
        facts.recalls[part] = {
            name: [float(found[bins == b].mean()) if (bins == b).any() else float("nan") for b in range(len(edges) - 1)]
            for name, found in curves.items()
        }


# ---- galleries -------------------------------------------------------------------------------------


def _galleries(facts: Facts, dataset: Dataset, seen: list[_Seen]):
    """The largest objects that nothing finds, and the surest detections of nothing."""
    misses, alarms = [], []
    for one in seen:
        sure = one.scores >= facts.threshold
        hit = np.isin(np.arange(len(one.truth)), one.objects[sure])
        file = dataset.file_names[one.index]
        for g, box in enumerate(one.truth):
            facts.found[file, g] = bool(hit[g])
            if not hit[g]:
                misses.append((-float((box[2:] - box[:2]).prod()), len(misses), one, g))
        for d in np.flatnonzero(sure & (one.objects == NOTHING)):
            alarms.append((-float(one.scores[d]), len(alarms), one, int(d)))
    facts.misses = [_missed(facts, dataset, one, g) for _, _, one, g in sorted(misses)[:WORST]]
    facts.alarms = [_alarmed(facts, dataset, one, d) for _, _, one, d in sorted(alarms)[:WORST]]


def _missed(facts, dataset, one: _Seen, g: int) -> Picture:
    cover = overlaps(one.boxes, one.truth[g : g + 1])[:, 0] * (one.scores >= facts.threshold)
    text = "nothing was said there"
    if len(cover) and cover.max() >= 0.1:
        d = int(cover.argmax())
        text = f"best: {facts.classes[one.labels[d]]} {one.scores[d]:.2f}, IoU {cover[d]:.2f}"
    side = float(np.sqrt((one.truth[g, 2:] - one.truth[g, :2]).prod()))
    title = f"{facts.classes[one.truth_labels[g]]}, {side:.0f} px"
    return _picture(facts, dataset, one, one.truth[g], title, text)


def _alarmed(facts, dataset, one: _Seen, d: int) -> Picture:
    said, iou, best = facts.classes[one.labels[d]], one.iou[d], one.best[d]
    if best == NOTHING or iou < 0.1:
        text = "nothing is there"
    elif one.truth_labels[best] != one.labels[d] and iou >= 0.5:
        text = f"it is a {facts.classes[one.truth_labels[best]]}"
    elif iou >= 0.5:
        text = "found already: a second box"
    else:
        text = f"poor box, IoU {iou:.2f}"
    return _picture(facts, dataset, one, one.boxes[d], f"{said} {one.scores[d]:.2f}", text, d)


def _picture(facts, dataset, one: _Seen, box, title, text, alarm: int | None = None) -> Picture:
    """A crop around a box: objects in green, detections in orange; the false alarm, or the missed object, in red."""
    record = dataset.image(one.index)
    image = read_image(record)
    x1, y1, x2, y2 = box
    half = max(x2 - x1, y2 - y1, min(image.size) / 6) * 0.9
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    area = (cx - half, cy - half, cx + half, cy + half)
    scale = CROP / (2 * half)
    crop = image.transform((CROP, CROP), Image.EXTENT, area, Image.BILINEAR)
    canvas = ImageDraw.Draw(crop)

    def outline(rectangle, colour, width):
        shown = [(v - o) * scale for v, o in zip(rectangle, (area[0], area[1]) * 2)]
        canvas.rectangle(shown, outline=colour, width=width)

    for other in one.truth:
        outline(other, GREEN, 2)
    for d in np.flatnonzero(one.scores >= facts.threshold):
        if d != alarm:
            outline(one.boxes[d], ORANGE, 1)
    outline(box, RED, 2)
    locations = None
    if one.locations is not None:
        rows, columns = one.locations.shape
        small = tuple(v * s for v, s in zip(area, (columns / record["width"], rows / record["height"]) * 2))
        level = Image.fromarray(one.locations).transform((CROP, CROP), Image.EXTENT, small, Image.BILINEAR)
        locations = _uri(_heat(level))
    where = os.path.basename(record["file_name"])
    return Picture(title, f"{text}; {where}", _uri(crop), locations)


def _heat(level: Image.Image) -> Image.Image:
    """Black over red and yellow to white."""
    value = np.asarray(level).astype(np.float32) / 255 * 3
    return Image.fromarray((np.clip(np.stack([value, value - 1, value - 2], 2), 0, 1) * 255).astype(np.uint8))


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
