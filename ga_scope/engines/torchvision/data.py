"""Training images for the built-in engine: augmented, in batches of like shape, without end."""

import itertools
from collections import defaultdict

import torch
from PIL import ImageOps
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ...data import Records, read_image
from ...data.images import resized_shape, to_network
from ..base import one_thread


class TrainMapper:
    """A dataset dict to the model's input, with detectron2's augmentations: resize and horizontal flip."""

    def __init__(self, cfg):
        keys = cfg.INPUT
        self.short_sides = tuple(keys.MIN_SIZE_TRAIN)
        self.from_range = keys.MIN_SIZE_TRAIN_SAMPLING == "range"
        self.longest = keys.MAX_SIZE_TRAIN
        self.flip = keys.RANDOM_FLIP == "horizontal"
        self.format = keys.FORMAT
        self.ignore_regions = cfg.DATASETS.IGNORE_REGIONS
        self.proposals = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if cfg.MODEL.LOAD_PROPOSALS else 0

    def _short_side(self):
        if self.from_range:
            low, high = min(self.short_sides), max(self.short_sides)
            return int(torch.randint(low, high + 1, ()))
        return self.short_sides[int(torch.randint(len(self.short_sides), ()))]

    def __call__(self, record: dict) -> dict:
        image = read_image(record)
        height, width = resized_shape(record["height"], record["width"], self._short_side(), self.longest)
        flipped = self.flip and bool(torch.rand(()) < 0.5)
        if flipped:
            image = ImageOps.mirror(image)
        mapped = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        mapped["image"] = torch.from_numpy(to_network(image, height, width, self.format))

        def moved(boxes, least=0.0):
            """Boxes (x1, y1, x2, y2) of the file in this image; which of them are left."""
            return _moved(
                torch.as_tensor(boxes, dtype=torch.float64).view(-1, 4), record, height, width, flipped, least
            )

        items = record["annotations"]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in items)]
        mapped["boxes"], kept = moved(boxes, 1e-5)
        mapped["labels"] = torch.tensor([item["category_id"] for item in items], dtype=torch.int64)[kept]
        if self.ignore_regions:
            mapped["ignore_boxes"] = moved(record["ignore_boxes"])[0]
        if self.proposals:
            boxes, kept = moved(record["proposal_boxes"])
            logits = torch.as_tensor(record["proposal_objectness_logits"])[kept]
            mapped["proposals"] = boxes[: self.proposals], logits[: self.proposals]
        return mapped


def _moved(boxes, record, height, width, flipped, least):
    """Boxes of the image file in the resized, perhaps flipped image, clipped; those with sides above ``least``."""
    boxes = boxes * torch.tensor([width / record["width"], height / record["height"]] * 2, dtype=torch.float64)
    if flipped:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    boxes = boxes.minimum(torch.tensor([width, height] * 2, dtype=torch.float64)).clamp(min=0).float()
    kept = (boxes[:, 2:] > boxes[:, :2] + least).all(1)
    return boxes[kept], kept


class _Mapped(Dataset):
    def __init__(self, records, mapper):
        self.records = records
        self.mapper = mapper

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.mapper(self.records[index])


class EndlessShuffle(Sampler):
    """Permutations of all indices, one after the other, for ever. Continues a run at any iteration."""

    def __init__(self, size: int, seed: int, skip: int = 0):
        self.size, self.seed, self.skip = size, seed, skip

    def __iter__(self):
        return itertools.islice(self._endless(), self.skip, None)

    def _endless(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.size, generator=generator).tolist()


class _AspectGroups(IterableDataset):
    """Batches of images that are all wide or all tall, so that little is padded."""

    def __init__(self, loader, batch_size, grouped):
        self.loader, self.batch_size, self.grouped = loader, batch_size, grouped

    def __iter__(self):
        pending = defaultdict(list)
        for item in self.loader:
            group = pending[item["width"] > item["height"] if self.grouped else None]
            group.append(item)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()


def _one(batch):
    return batch[0]


def build_train_loader(cfg, records: Records, seed: int, start_iteration: int = 0):
    """Batches of SOLVER.IMS_PER_BATCH mapped records, without end."""
    sampler = EndlessShuffle(len(records), seed, start_iteration * cfg.SOLVER.IMS_PER_BATCH)
    loader = DataLoader(
        _Mapped(records, TrainMapper(cfg)),
        batch_size=1,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_one,
        worker_init_fn=one_thread,
        generator=torch.Generator().manual_seed(seed + start_iteration),
    )
    return _AspectGroups(loader, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.ASPECT_RATIO_GROUPING)
