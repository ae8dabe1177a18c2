"""A picture for each of many images, by the kind of model."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data import Dataset
from ..data.images import resized_shape
from ..modeling.scope import ScopeDetector
from .panels import draw_panels
from .scope import draw_anchors, draw_scopes, draw_scores, learned_distances, true_ious


def picture_names(files: Sequence[str]) -> list[str]:
    """A name for the picture of each file: its own below their common folder, so that no two are the same."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    root = os.path.commonpath(folders) if folders else ""
    names = [os.path.relpath(os.path.abspath(file), root).replace(os.sep, "__") for file in files]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(f"{name}.png" if seen[name] == 1 else f"{name}.{seen[name]}.png")
    return unique


def draw_gallery(folder, detector, records: Dataset | list[dict], limit: int | None, score_thresh: float) -> list[str]:
    """Writes the pictures of the first ``limit`` images; what there is to say of them.

    Of a ScopeNet and a dataset also ``anchors.png``, the learned anchors against the distances that the dataset has,
    and ``scores.png``, scores against the true IoU, both of all images.

    Args:
        detector: a :class:`ga_scope.Detector`.
        records: a dataset, whose objects are drawn as well, or dicts of images.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    limit = len(records) if limit is None else min(limit, len(records))
    truth_of = _truth(records)
    scope = next((m for m in detector.model.modules() if isinstance(m, ScopeDetector)), None)
    scores = _Scores(detector.cfg, scope) if scope is not None and truth_of else None
    seen = records if scores else records.first(limit) if isinstance(records, Dataset) else records[:limit]
    names = picture_names([seen[i]["file_name"] for i in range(limit)])
    for index, found in enumerate(detector.stream(seen, maps=True)):
        truth = truth_of(index) if truth_of else None
        if scores:
            scores.add(found, truth)
        if index < limit:
            draw_maps(folder / names[index], detector.model, found, truth, detector.classes, score_thresh)
    return [*(scores.finish(folder) if scores else ()), f"{limit} pictures in {folder}"]


def draw_maps(path, model, found, truth: Tensor | None, names: Sequence[str], score_thresh: float):
    """Writes the picture of one image, as fits the model: ScopeNet's bins, or locations, anchors and proposals.

    Args:
        found: a :class:`ga_scope.api.Detected` with its maps.
        truth: boxes (G, 4), or None where they are not known.
    """
    scope = next((m for m in model.modules() if isinstance(m, ScopeDetector)), None)
    if scope is not None:
        draw_scopes(path, found.image, found, scope.head.bins, truth, names, score_thresh)
    else:
        draw_panels(path, found.image, found, truth, names, score_thresh)


def _truth(records):
    """From an index to the boxes (G, 4) of the objects."""
    if not isinstance(records, Dataset) or not records.annotated:
        return None
    return lambda index: torch.from_numpy(records.objects(index)[0]).float()


class _Scores:
    """What a ScopeNet's anchors and scores are worth on a dataset."""

    def __init__(self, cfg, detector: ScopeDetector):
        self.size, self.detector = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST), detector
        self.ious, self.sizes, self.boxes = [], [], []
        self.scores: dict[str, list[Tensor]] = {"p_cls": [], "p_loc": [], "p_box": []}

    def add(self, found, truth: Tensor):
        height, width = found.record["height"], found.record["width"]
        rows, columns = resized_shape(height, width, *self.size)
        self.sizes.append((rows, columns))
        self.boxes.append(truth * torch.tensor([columns / width, rows / height] * 2))
        self.ious.append(true_ious(found, truth))
        parts = (found.scopes.class_scores, found.scopes.localization_scores, found.scores)
        for values, of_image in zip(self.scores.values(), parts):
            values.append(of_image)

    def finish(self, folder: Path) -> list[str]:
        draw_anchors(folder / "anchors.png", self.detector, learned_distances(self.detector, self.sizes, self.boxes))
        scores = {name: torch.cat(values) for name, values in self.scores.items()}
        found = draw_scores(folder / "scores.png", torch.cat(self.ious), scores)
        return ["rank correlation with the true IoU: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items())]
