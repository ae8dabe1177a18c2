"""COCO metrics of a dataset's results, of either engine.

Proposals are scored as the paper does (Table 1): class-agnostic average recall over IoU 0.50:0.05:0.95 at several
numbers of proposals, and at 100 by object area and by aspect. Boxes get COCO's average precision and recall, by
pycocotools. All are fractions, of the file's own annotations: what was cleaned or left out for training counts here.
"""

import contextlib
import io
import logging

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data import Dataset
from ..modeling.results import ImageResult
from .recall import AREAS, ASPECTS, average_recalls

logger = logging.getLogger(__name__)

PROPOSAL_COUNTS = (10, 100, 300, 1000)
DETECTION_COUNTS = (1, 10, 100)  # COCO's


class Evaluation:
    """Collects the results of a dataset's images and scores them.

    Args:
        dataset: whose annotations they are scored against.
        detections_per_image: that the model has at most: a warning says where more could have been found.
    """

    def __init__(self, dataset: Dataset, detections_per_image: int = 100):
        self.dataset = dataset
        self.detections_per_image = detections_per_image
        self.results: dict[int | str, ImageResult] = {}

    def add(self, image_id, result: ImageResult):
        """The results of an image, without maps and with the proposals that count."""
        proposals, logits = result.proposals, result.proposal_logits
        if proposals is not None:
            order = logits.argsort(descending=True, stable=True)[: max(PROPOSAL_COUNTS)]
            proposals, logits = proposals[order], logits[order]
        self.results[image_id] = ImageResult(
            result.boxes, result.scores, result.classes, proposals, logits, result.anchors, result.locations
        )

    def merge(self, parts: list[dict]):
        """Takes the :attr:`results` of several processes in place of its own, in the dataset's order: means are sums,
        whose last digits follow the order.
        """
        found = {image: result for part in parts for image, result in part.items()}
        order = (self.dataset.image(index)["image_id"] for index in range(len(self.dataset)))
        self.results = {image: found[image] for image in order if image in found}

    def _some(self, attribute: str) -> list[ImageResult]:
        return [result for result in self.results.values() if getattr(result, attribute) is not None]

    def metrics(self) -> dict[str, float]:
        """The metrics of what was added; nan where no object exists to be found."""
        found, annotated = {}, self.dataset.annotated
        if self._some("proposals") and annotated:
            recalls = average_recalls(self._objects_and_proposals(), PROPOSAL_COUNTS)
            found |= {f"AR@{count}": recalls["all", count] for count in PROPOSAL_COUNTS}
            found |= {f"AR_{area[0].upper()}@100": recalls[area, 100] for area in AREAS if area != "all"}
            found |= {f"AR_{aspect}@100": recalls[aspect, 100] for aspect in ASPECTS}
        counted = self._some("anchors")
        if counted:
            found["anchors_per_image"] = float(np.mean([r.anchors for r in counted]))
            found["active_fraction"] = float(np.mean([r.anchors / r.locations for r in counted]))
        if self._some("boxes") and annotated:
            self._warn_of_crowded_images()
            found |= precisions(self.dataset, self.detections())
        if not annotated:
            logger.warning("%s: has no annotations: there is nothing to score against", self.dataset.name)
        return found

    def detections(self) -> list[dict]:
        """In COCO's format for results."""
        found = []
        for image_id, result in self.results.items():
            if result.boxes is None:
                continue
            boxes = result.boxes.double().numpy()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(boxes.tolist(), result.scores.tolist(), result.classes.tolist())
            for box, score, label in rows:
                category = self.dataset.category_ids[label]
                found.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
        return found

    def _warn_of_crowded_images(self):
        table, most = self.dataset.annotations, min(self.detections_per_image, max(DETECTION_COUNTS))
        objects = np.concatenate([[0], np.cumsum(~table.crowd & ~table.ignore)])
        counts = objects[self.dataset.starts[1:]] - objects[self.dataset.starts[:-1]]
        crowded = np.flatnonzero(counts > most)
        if len(crowded):
            worst = crowded[counts[crowded].argmax()]
            logger.warning(
                "%s: %d images have more than the %d objects that detections can count for (TEST.DETECTIONS_PER_IMAGE, "
                "and COCO's metrics take 100 at most), up to %d in %s: a perfect detector would not reach AP 1 there",
                self.dataset.name, len(crowded), most, counts[worst], self.dataset.file_names[int(worst)],
            )  # fmt: skip

    def _objects_and_proposals(self):
        """What :func:`average_recalls` takes, of every image."""
        table, starts = self.dataset.annotations, self.dataset.starts
        for index in range(len(self.dataset)):
            image_id = self.dataset.image(index)["image_id"]
            result, rows = self.results.get(image_id), slice(starts[index], starts[index + 1])
            chosen = ~table.crowd[rows] & ~table.ignore[rows]
            proposals = np.zeros((0, 4)) if result is None else result.proposals.double().numpy()
            proposals = np.concatenate([proposals[:, :2], proposals[:, 2:] - proposals[:, :2]], 1)
            yield proposals, table.boxes[rows][chosen], table.areas[rows][chosen]


class _Evaluation(COCOeval):
    """pycocotools' with ``ignore`` as datasets mean it: found or not, such an object does not count."""

    def _prepare(self):
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = item["ignore"] or item["ignored"]


def ground_truth(dataset: Dataset, one_class: bool = False) -> COCO:
    """The annotations of a dataset for pycocotools; of ``one_class``: all have the first.

    Images go by their index: pycocotools sorts the ids, and a file may have numbers and texts.
    """
    table = dataset.annotations
    image_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": dataset.category_ids[0 if one_class else label],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
            "ignored": ignored,
        }
        for i, (image, label, box, area, crowd, ignored) in enumerate(
            zip(
                image_of.tolist(), table.labels.tolist(), table.boxes.tolist(), table.areas.tolist(),
                table.crowd.tolist(), table.ignore.tolist(),
            )
        )
    ]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in zip(dataset.category_ids, dataset.classes)]
    coco = COCO()
    sizes = zip(dataset.heights.tolist(), dataset.widths.tolist())
    images = [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def accumulated(dataset: Dataset, detections: list[dict], one_class: bool = False) -> dict:
    """pycocotools' ``eval``: ``precision`` (IoUs, 101 recalls, classes, areas, counts) and ``recall`` without recalls.

    -1 where a class has no object.
    """
    truth = ground_truth(dataset, one_class)
    index = {dataset.image(i)["image_id"]: i for i in range(len(dataset))}
    detections = [found | {"image_id": index[found["image_id"]]} for found in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes takes no empty list; an index without results does the same.
        found = truth.loadRes(detections) if detections else COCO()
        if not detections:
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = _Evaluation(truth, found, "bbox")
        evaluation.params.maxDets = list(DETECTION_COUNTS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def precisions(dataset: Dataset, detections: list[dict], one_class: bool = False) -> dict[str, float]:
    """COCO's AP and AR of boxes, and, of several classes, AP of each (``AP-name``)."""
    found = accumulated(dataset, detections, one_class)
    precision, recall = found["precision"], found["recall"]
    values = {"AP": _mean(precision[:, :, :, 0, -1])}
    values |= {f"AP{50 + 5 * i}": _mean(precision[i, :, :, 0, -1]) for i in (0, 5)}
    values |= {f"AP_{area[0].upper()}": _mean(precision[:, :, :, a, -1]) for a, area in enumerate(AREAS) if a}
    values |= {f"box_AR@{count}": _mean(recall[:, :, 0, m]) for m, count in enumerate(DETECTION_COUNTS)}
    if len(dataset.classes) > 1 and not one_class:
        values |= {f"AP-{name}": _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(dataset.classes)}
    return values


def _mean(values):
    """COCO's mean: -1 marks what does not exist."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
