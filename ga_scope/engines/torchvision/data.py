"""Training images for the built-in engine: augmented."""

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from ...data import read_image
from ...data.images import resized_shape, to_network


class RandomCrop(v2.Transform):
    """A part of the image, INPUT.CROP: of the size that detectron2's ``T.RandomCrop`` cuts, anywhere."""

    def __init__(self, kind: str, size):
        super().__init__()
        self.kind, self.size = kind, size

    def make_params(self, flat_inputs):
        height, width = v2.query_size(flat_inputs)
        h, w = (min(max(side, 1), limit) for side, limit in zip(self._sides(height, width), (height, width)))
        return {"top": _between(0, height - h), "left": _between(0, width - w), "height": h, "width": w}

    def _sides(self, height, width):
        first, second = self.size
        if self.kind == "absolute":
            return int(first), int(second)
        if self.kind == "absolute_range":
            return tuple(_between(min(side, int(first)), min(side, int(second))) for side in (height, width))
        if self.kind == "relative_range":
            first, second = (low + float(torch.rand(())) * (1 - low) for low in self.size)
        return int(height * first + 0.5), int(width * second + 0.5)

    def transform(self, inpt, params):
        return self._call_kernel(F.crop, inpt, **params)


class ResizeShortestEdge(v2.Transform):
    """To one of the sizes, or with ``between`` to any between the least and the largest of them."""

    def __init__(self, short_sides, between: bool, longest: int):
        super().__init__()
        self.short_sides, self.between, self.longest = tuple(short_sides), between, longest

    def make_params(self, flat_inputs):
        if self.between:
            short = _between(min(self.short_sides), max(self.short_sides))
        else:
            short = self.short_sides[_between(0, len(self.short_sides) - 1)]
        return {"size": resized_shape(*v2.query_size(flat_inputs), short, self.longest)}

    def transform(self, inpt, params):
        return self._call_kernel(F.resize, inpt, **params)


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def augmentation(cfg) -> v2.Transform:
    """Of INPUT's keys: on a PIL image and any number of ``BoundingBoxes``."""
    keys, steps = cfg.INPUT, []
    if keys.CROP.ENABLED:
        steps.append(RandomCrop(keys.CROP.TYPE, keys.CROP.SIZE))
    steps.append(ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING == "range", keys.MAX_SIZE_TRAIN))
    if keys.RANDOM_FLIP in ("horizontal", "both"):
        steps.append(v2.RandomHorizontalFlip())
    if keys.RANDOM_FLIP in ("vertical", "both"):
        steps.append(v2.RandomVerticalFlip())
    if any(keys.COLOR_JITTER):
        steps.append(v2.ColorJitter(*keys.COLOR_JITTER))
    return v2.Compose(steps)


class TrainMapper:
    """A dataset dict to the model's input, augmented."""

    def __init__(self, cfg):
        self.augment = augmentation(cfg)
        self.format = cfg.INPUT.FORMAT
        self.ignore_regions = cfg.DATASETS.IGNORE_REGIONS
        self.proposals = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if cfg.MODEL.LOAD_PROPOSALS else 0

    def __call__(self, record: dict) -> dict:
        mapped = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        items = record["annotations"]
        sets = {"boxes": [[x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in items)]}
        if self.ignore_regions:
            sets["ignore_boxes"] = record["ignore_boxes"]
        if self.proposals:
            sets["proposals"] = record["proposal_boxes"]
        size = record["height"], record["width"]
        image, sets = self.augment(read_image(record), {name: _tracked(boxes, size) for name, boxes in sets.items()})
        width, height = image.size
        mapped["image"] = torch.from_numpy(to_network(image, height, width, self.format))
        sets = {name: _within(boxes, height, width) for name, boxes in sets.items()}
        mapped["boxes"], kept = sets["boxes"]
        mapped["labels"] = torch.tensor([item["category_id"] for item in items], dtype=torch.int64)[kept]
        if self.ignore_regions:
            mapped["ignore_boxes"] = sets["ignore_boxes"][0]
        if self.proposals:
            boxes, kept = sets["proposals"]
            logits = torch.as_tensor(record["proposal_objectness_logits"])[kept]
            mapped["proposals"] = boxes[: self.proposals], logits[: self.proposals]
        return mapped


def _tracked(boxes, size) -> BoundingBoxes:
    boxes = torch.as_tensor(boxes, dtype=torch.float64).view(-1, 4)
    return BoundingBoxes(boxes, format="XYXY", canvas_size=size, clamping_mode=None)


def _within(boxes, height, width):
    """Boxes clipped to the image; those that something is left of, and which these are."""
    boxes = boxes.as_subclass(torch.Tensor)
    boxes = boxes.minimum(torch.tensor([width, height] * 2, dtype=torch.float64)).clamp(min=0).float()
    kept = (boxes[:, 2:] > boxes[:, :2] + 1e-5).all(1)
    return boxes[kept], kept
