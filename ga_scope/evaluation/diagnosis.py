"""Where objects get lost on the way to a proposal: per stage of GA-RPN, with advice in plain words.

An object counts as found by a stage if something of that stage overlaps it enough (IoU of at least 0.5 unless said
otherwise): any box at all centred on a location; one on an active location; an anchor; a proposal before NMS; one
after it.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..modeling.results import ImageResult

STAGES = ("reachable", "location", "anchor", "proposal", "after NMS")
MEANING = {
    "reachable": "some box centred on any location covers it",
    "location": "some box centred on an active location covers it",
    "anchor": "an anchor of the shape that is predicted covers it",
    "proposal": "an anchor after box regression covers it",
    "after NMS": "one of the final proposals covers it",
}
SIZES = {"small": (0, 32), "medium": (32, 96), "large": (96, float("inf"))}  # COCO's, side in pixels of the file
LOWER = 5.0  # the threshold divided by this is tried for advice


def exact_viou(centers: Tensor, box: Tensor) -> Tensor:
    """The best IoU that a box centred on each of ``centers`` (L, 2) can have with ``box`` (4,): (L,).

    The maximum of Eq. 5 over all widths and heights: it is reached where each side of the anchor's box ends on the
    nearer or on the farther side of the object.
    """
    before, after = centers - box[:2], box[2:] - centers  # (L, 2): signed distances to the sides
    near, far = before.minimum(after), before.maximum(after)
    side = box[2:] - box[:2]
    best = centers.new_zeros(len(centers))
    for half_width in (near, far):
        for half_height in (near, far):
            half = torch.stack([half_width[:, 0], half_height[:, 1]], 1)
            overlap = (half.minimum(before) + half.minimum(after)).clamp(min=0).prod(1)
            union = (2 * half).prod(1) + side.prod() - overlap
            best = torch.where((half > 0).all(1), best.maximum(overlap / union), best)
    return best


def _best(boxes: Tensor, box: Tensor) -> float:
    """The best IoU of any of the boxes (A, 4) with a box (4,)."""
    if not len(boxes):
        return 0.0
    overlap = (boxes[:, 2:].minimum(box[2:]) - boxes[:, :2].maximum(box[:2])).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return float((overlap / (areas + (box[2:] - box[:2]).prod() - overlap)).max())


@dataclass
class Diagnosis:
    """What was seen of a dataset's objects; one entry each in ``sides`` and in ``overlaps[stage]``."""

    base_sides: list[float]  # sigma * stride per level
    threshold: float
    post_nms_topk: int
    active: list[list[float]] = field(default_factory=list)  # per image and level: fraction of locations
    sides: list[float] = field(default_factory=list)  # square root of the area, in pixels of the network's input
    file_sides: list[float] = field(default_factory=list)  # in pixels of the image file
    overlaps: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    with_lower_threshold: list[float] = field(default_factory=list)
    proposals: list[int] = field(default_factory=list)  # per image

    def add(self, result: ImageResult, truth: Tensor, scale: float):
        """One image.

        Args:
            result: of a GA-RPN, with its maps.
            truth: (G, 4), objects in pixels of the image file.
            scale: from the network's pixels to the file's.
        """
        guided, truth = result.guided, truth.float()
        probability = torch.cat([level.flatten() for level in guided.probability])
        on = torch.zeros(len(probability))
        on[guided.active] = 1
        counts = [level.numel() for level in guided.probability]
        self.active.append([float(level.mean()) for level in on.split(counts)])
        lower = probability >= self.threshold / LOWER
        self.proposals.append(len(result.proposals))
        for box in truth:
            side = float((box[2:] - box[:2]).prod().sqrt())
            self.sides.append(side / scale)
            self.file_sides.append(side)
            viou = exact_viou(guided.centers, box)
            found = (
                float(viou.max()),
                float((viou * on).max()),
                _best(guided.boxes, box),
                _best(guided.regressed, box),
                _best(result.proposals, box),
            )
            for stage, value in zip(STAGES, found):
                self.overlaps[stage].append(value)
            self.with_lower_threshold.append(float((viou * lower).max()))

    # ---- what it says ---------------------------------------------------------------------------

    def recall(self, stage: str, iou: float, size: str | None = None) -> float:
        """The fraction of objects (of a size of ``SIZES``) that a stage covers; nan without objects."""
        return self._share(np.array(self.overlaps[stage]) >= iou, size)

    def _share(self, found, size=None):
        sides = np.array(self.file_sides)
        low, high = SIZES.get(size, (0, float("inf")))
        kept = found[(sides >= low) & (sides < high)]
        return float(kept.mean()) if kept.size else float("nan")

    def as_dict(self, iou: float = 0.5) -> dict:
        """Everything that :meth:`text` shows, as plain data."""
        edges = np.linspace(0, 1, 11)
        return {
            "objects": len(self.sides),
            "iou": iou,
            "active_fraction_per_level": np.mean(self.active, 0).tolist(),
            "recall": {s: {"all": self.recall(s, iou)} | {z: self.recall(s, iou, z) for z in SIZES} for s in STAGES},
            "histogram": {
                "edges": edges.tolist(),
                **{s: np.histogram(self.overlaps[s], edges)[0].tolist() for s in ("reachable", "location", "anchor")},
            },
            "suggestions": self.suggestions(iou),
        }

    def suggestions(self, iou: float = 0.5) -> list[str]:
        """What to try, the largest loss first."""
        if not self.sides:
            return ["There is no object to look for: is this the right dataset?"]
        recall = {stage: self.recall(stage, iou) for stage in STAGES}
        sides = np.array(self.sides)
        found = []

        def add(lost, text):
            if lost > 0.02:
                found.append((lost, f"{100 * lost:.0f} % of the objects {text}"))

        unreachable = np.array(self.overlaps["reachable"]) < iou
        if unreachable.any():
            add(
                1 - recall["reachable"],
                f"cannot be covered from any location: they are small or thin for the grid (median side "
                f"{np.median(sides[unreachable]):.0f} px in the network). Enlarge the images (INPUT.MIN_SIZE_TRAIN, "
                "INPUT.MIN_SIZE_TEST) or add a finer level to MODEL.RPN.IN_FEATURES.",
            )
        lower = self._share(np.array(self.with_lower_threshold) >= iou)
        gain = lower - recall["location"]
        remedy = (
            f"With MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD {self.threshold / LOWER:g} instead of {self.threshold:g} "
            f"{100 * gain:.0f} % would come back."
            if gain > 0.02
            else "A lower threshold does not bring them back: the location branch has not learned them. Train longer, "
            "or compare their sizes with the levels' below."
        )
        add(recall["reachable"] - recall["location"], f"have no active location that could cover them. {remedy}")
        best_box = np.maximum(self.overlaps["anchor"], self.overlaps["proposal"])
        misshapen = (np.array(self.overlaps["location"]) >= iou) & (best_box < iou)
        add(
            recall["location"] - max(recall["anchor"], recall["proposal"]),  # box regression may bring them back
            f"have an active location, but no anchor there fits them. {self._shape_advice(sides[misshapen])}",
        )
        add(
            recall["anchor"] - recall["proposal"],
            "are covered by an anchor and lost by box regression: train longer, or check that "
            "MODEL.RPN.BBOX_REG_WEIGHTS are those that the weights were trained with.",
        )
        full = np.mean(np.array(self.proposals) >= self.post_nms_topk) > 0.5
        add(
            recall["proposal"] - recall["after NMS"],
            "have a good box that does not survive: "
            + (
                "most images have all the proposals that they may; raise MODEL.RPN.POST_NMS_TOPK_TEST."
                if full
                else "raise MODEL.RPN.NMS_THRESH, or PRE_NMS_TOPK_TEST if levels have more active locations than that."
            ),
        )
        wide = [i for i, share in enumerate(np.mean(self.active, 0)) if share > 0.3]
        texts = [text for _, text in sorted(found, reverse=True)]
        if wide:
            texts.append(
                f"Level{'s' if len(wide) > 1 else ''} {', '.join(map(str, wide))} (counted from 0) "
                "keep more than 30 % of their locations active, which costs time: raise "
                f"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD from {self.threshold:g}, or train longer."
            )
        return texts or ["Nothing stands out: every stage keeps what the one before it had."]

    def _shape_advice(self, sides: np.ndarray) -> str:
        """For objects of these sides (in the network's pixels), whose anchors have another shape."""
        if not len(sides):
            return ""
        typical, smallest, largest = np.median(sides), self.base_sides[0], self.base_sides[-1]
        seen = f"Their median side is {typical:.0f} px in the network"
        if typical < smallest / np.sqrt(2):
            return (
                f"{seen}, smaller than the anchors that the finest level starts from ({smallest:g} px): lower "
                "MODEL.GUIDED_ANCHORING.SIGMA or enlarge the images (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST)."
            )
        if typical > largest * np.sqrt(2):
            return (
                f"{seen}, larger than the anchors that the coarsest level starts from ({largest:g} px): raise "
                "MODEL.GUIDED_ANCHORING.SIGMA or add a coarser level to MODEL.RPN.IN_FEATURES."
            )
        return (
            f"{seen}, a size that the levels are made for, so the shape branch has not learned them: train longer, or "
            "raise MODEL.GUIDED_ANCHORING.SHAPE.LOSS_WEIGHT."
        )

    def text(self, iou: float = 0.5) -> str:
        """Tables, a histogram and the suggestions."""
        content = self.as_dict(iou)
        lines = [f"{content['objects']} objects in {len(self.active)} images; found: IoU of at least {iou:g}", ""]
        lines.append("active locations, by the side of the anchors that a level starts from:")
        for base, share in zip(self.base_sides, content["active_fraction_per_level"]):
            lines.append(f"  {base:6g} px  {100 * share:5.1f} %  {'#' * round(40 * share)}")
        limits = ", ".join(f"{name} below {high:g} px" for name, (_, high) in SIZES.items() if high < float("inf"))
        lines += ["", f"objects found at each stage, by their size in the image file ({limits}):"]
        lines += [f"{'':<16}" + "".join(f"{size:>9}" for size in ("all", *SIZES))]
        for stage, values in content["recall"].items():
            cells = "".join("        –" if np.isnan(v) else f"{100 * v:8.1f}%" for v in values.values())
            lines.append(f"  {stage:<14}{cells}   {MEANING[stage]}")
        lines += ["", "number of objects by their best overlap (IoU) with"]
        lines.append(f"{'':11}{'any box at an active location':<32}an anchor there")
        histogram, most = content["histogram"], max(max(content["histogram"][s]) for s in ("location", "anchor"))
        for i in range(10):
            bars = "  ".join(
                f"{histogram[s][i]:5d} {'#' * round(24 * histogram[s][i] / max(most, 1)):<24}"
                for s in ("location", "anchor")
            )
            lines.append(f"  {i / 10:.1f}-{(i + 1) / 10:.1f}  {bars}")
        lines += ["", "suggestions:", *(f"- {text}" for text in content["suggestions"])]
        return "\n".join(lines)
