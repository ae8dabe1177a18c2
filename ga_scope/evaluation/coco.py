"""COCO metrics of both engines.

Proposals are scored as the paper does (Table 1): class-agnostic average recall over IoU 0.50:0.05:0.95 at
several numbers of proposals, and at 100 by object area. Boxes get COCO's average precision, by pycocotools. All values
are fractions.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .recall import AREAS, average_recalls

PROPOSAL_COUNTS = (10, 100, 300, 1000)


class CocoEvaluation:
    """Collects the results of a dataset's images and scores them.

    Args:
        dicts, categories: as :func:`ga_scope.data.load_coco_json` gives them.
    """

    def __init__(self, dicts: list[dict], categories: list[dict]):
        self.dicts = dicts
        self.categories = categories
        self.detections: list[dict] = []
        self.proposals: list[tuple] = []  # (image id, boxes as x, y, width, height)
        self.anchors: list[tuple[int, int]] = []
        self.added: set[str] = set()  # of "detections" and "proposals": what the model makes, found or not

    def add_detections(self, image_id, boxes, scores, classes):
        """Boxes (D, 4) as x1, y1, x2, y2 in pixels of the image file, scores (D,), class positions (D,)."""
        self.added.add("detections")
        for box, score, label in zip(_xywh(boxes).tolist(), _list(scores), _list(classes)):
            category = self.categories[label]["id"]
            self.detections.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})

    def add_proposals(self, image_id, boxes, scores):
        """Proposals (K, 4), best first, and their scores (K,)."""
        self.added.add("proposals")
        order = np.argsort(-np.asarray(scores), kind="stable")[: max(PROPOSAL_COUNTS)]
        self.proposals.append((image_id, _xywh(boxes)[order]))

    def add_anchors(self, anchors: int, locations: int):
        """Anchors that an image's results came from, and the locations that the pyramid has."""
        self.anchors.append((anchors, locations))

    def results(self) -> dict:
        """What was collected, to be merged over processes."""
        return {
            "detections": self.detections,
            "proposals": self.proposals,
            "anchors": self.anchors,
            "added": self.added,
        }

    def merge(self, results: list[dict]):
        """Replaces what was collected by the union of several processes' results."""
        for name in ("detections", "proposals", "anchors"):
            setattr(self, name, [item for part in results for item in part[name]])
        self.added = {item for part in results for item in part["added"]}

    def metrics(self) -> dict[str, float]:
        """The metrics of what was added. nan where no object exists to be found."""
        found = {}
        if "proposals" in self.added:
            recalls = average_recalls(self._objects_and_proposals(), PROPOSAL_COUNTS)
            found |= {f"AR@{count}": recalls["all", count] for count in PROPOSAL_COUNTS}
            found |= {f"AR_{area[0].upper()}@100": recalls[area, 100] for area in AREAS if area != "all"}
        if self.anchors:
            found["anchors_per_image"] = float(np.mean([a for a, _ in self.anchors]))
            found["active_fraction"] = float(np.mean([a / n for a, n in self.anchors]))
        if "detections" in self.added:
            found |= _precisions(self._ground_truth(), self.detections)
        return found

    def _objects_and_proposals(self):
        """What :func:`average_recalls` takes, of every image."""
        proposals = dict(self.proposals)
        for record in self.dicts:
            objects = [item for item in record["annotations"] if not item["iscrowd"]]
            boxes = np.array([item["bbox"] for item in objects], dtype=np.float64).reshape(-1, 4)
            areas = np.array([item.get("area", w * h) for item, (_, _, w, h) in zip(objects, boxes)])
            yield proposals.get(record["image_id"], np.zeros((0, 4))), boxes, areas

    def _ground_truth(self):
        annotations = []
        for record in self.dicts:
            for item in record["annotations"]:
                _, _, width, height = item["bbox"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record["image_id"],
                        "category_id": self.categories[item["category_id"]]["id"],
                        "bbox": item["bbox"],
                        "area": item.get("area", width * height),
                        "iscrowd": item["iscrowd"],
                    }
                )
        coco = COCO()
        images = [{"id": r["image_id"], "width": r["width"], "height": r["height"]} for r in self.dicts]
        coco.dataset = {"images": images, "annotations": annotations, "categories": self.categories, "info": {}}
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def _xywh(boxes):
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _list(values):
    return np.asarray(values).tolist()


def _precisions(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes takes no empty list; an index without results does the same.
        found = truth.loadRes(detections) if detections else COCO()
        if not detections:
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoUs, recalls, classes, areas, counts); the last count is 100
    values = {"AP": _mean(precision[:, :, :, 0, 2])}
    values |= {f"AP{50 + 5 * i}": _mean(precision[i, :, :, 0, 2]) for i in (0, 5)}
    return values | {f"AP_{area[0].upper()}": _mean(precision[:, :, :, a, 2]) for a, area in enumerate(AREAS) if a}


def _mean(values):
    """COCO's mean: -1 marks what does not exist."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def metrics_table(metrics: dict[str, float]) -> str:
    """The metrics as lines of name and value, recalls and precisions in percent."""
    lines = []
    for name, value in metrics.items():
        shown = f"{value:10.1f}" if name == "anchors_per_image" else f"{100 * value:10.1f} %"
        lines.append(f"  {name:<18}{shown}")
    return "\n".join(lines)


def report(metrics: dict[str, dict[str, float]], folder):
    """Prints a table per dataset and writes ``metrics.json`` (``metrics_<dataset>.json`` if there are several)."""
    for dataset, values in metrics.items():
        name = "metrics.json" if len(metrics) == 1 else f"metrics_{dataset}.json"
        path = write_metrics(Path(folder) / name, values)
        print(f"{dataset}:\n{metrics_table(values)}\n  -> {path}", flush=True)


def write_metrics(path, metrics: dict) -> Path:
    """Writes the metrics as JSON (nan as null) and returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in metrics.items()}
    path.write_text(json.dumps(clean, indent=2) + "\n")
    return path
