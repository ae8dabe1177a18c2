"""Images and boxes for the built-in engine: reading, resizing, flipping, batching."""

import itertools
from collections import defaultdict

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ...config import check_num_classes
from ...data import add_proposals, load_dataset, proposal_file
from ...data.coco import DatasetError
from ...modeling.box_coding import clip_boxes
from ...modeling.proposals import Proposals


def read_image(record: dict, format: str) -> Image.Image:
    """The image file of a dataset dict, upright, as RGB; errors name the file."""
    name = record["file_name"]
    try:
        with Image.open(name) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise DatasetError(f"{name}: no such image") from None
    except Exception as error:  # PIL raises many kinds for broken files, none with the name
        raise DatasetError(f"{name}: cannot be read as an image: {error}") from None
    if image.size != (record["width"], record["height"]):
        raise DatasetError(
            f"{name}: expected {record['width']} x {record['height']} pixels (the annotations), "
            f"got {image.size[0]} x {image.size[1]}"
        )
    return image


def resized_shape(height, width, short_side, longest):
    """Height and width with the shorter side ``short_side`` (0: as they are), unless the longer exceeds ``longest``."""
    if short_side == 0:
        return height, width
    scale = short_side / min(height, width)
    new = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new) > longest:
        new = tuple(side * (longest / max(new)) for side in new)
    return int(new[0] + 0.5), int(new[1] + 0.5)


class Mapper:
    """A dataset dict to the model's input, with detectron2's augmentations: resize and horizontal flip."""

    def __init__(self, cfg, training: bool):
        keys = cfg.INPUT
        self.training = training
        self.short_sides = tuple(keys.MIN_SIZE_TRAIN) if training else (keys.MIN_SIZE_TEST,)
        self.from_range = training and keys.MIN_SIZE_TRAIN_SAMPLING == "range"
        self.longest = keys.MAX_SIZE_TRAIN if training else keys.MAX_SIZE_TEST
        self.flip = training and keys.RANDOM_FLIP == "horizontal"
        self.format = keys.FORMAT
        split = "TRAIN" if training else "TEST"
        self.proposals = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"] if cfg.MODEL.LOAD_PROPOSALS else 0

    def _short_side(self):
        if self.from_range:
            low, high = min(self.short_sides), max(self.short_sides)
            return int(torch.randint(low, high + 1, ()))
        return self.short_sides[int(torch.randint(len(self.short_sides), ()))]

    def __call__(self, record: dict) -> dict:
        image = read_image(record, self.format)
        height, width = resized_shape(record["height"], record["width"], self._short_side(), self.longest)
        flipped = self.flip and bool(torch.rand(()) < 0.5)
        image = image.resize((width, height), Image.BILINEAR)
        if flipped:
            image = ImageOps.mirror(image)
        pixels = np.asarray(image)
        if self.format == "BGR":
            pixels = pixels[:, :, ::-1]
        mapped = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        mapped["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self.proposals:
            mapped["proposals"] = self._proposals(record, height, width, flipped)
        if self.training:
            mapped["boxes"], mapped["labels"] = self._targets(record, height, width, flipped)
        return mapped

    def _proposals(self, record, height, width, flipped):
        if "proposal_boxes" not in record:
            raise DatasetError(
                f"{record['file_name']}: expected proposals with the image (ga_scope.data.with_proposals), got none"
            )
        boxes = _moved(torch.tensor(record["proposal_boxes"]), record, height, width, flipped)
        boxes = clip_boxes(boxes, (height, width)).float()
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        logits = torch.tensor(record["proposal_objectness_logits"])
        return Proposals(boxes[kept][: self.proposals], logits[kept][: self.proposals])

    @staticmethod
    def _targets(record, height, width, flipped):
        # As detectron2, crowd regions are left out of training.
        items = [a for a in record["annotations"] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in items], dtype=torch.float64).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = _moved(boxes, record, height, width, flipped)
        boxes = boxes.minimum(torch.tensor([width, height] * 2, dtype=torch.float64)).clamp(min=0).float()
        labels = torch.tensor([a["category_id"] for a in items], dtype=torch.int64)
        kept = (boxes[:, 2:] > boxes[:, :2] + 1e-5).all(1)
        return boxes[kept], labels[kept]


def _moved(boxes, record, height, width, flipped):
    """Boxes of the image file in the resized, perhaps flipped image; float64."""
    boxes = boxes.double() * torch.tensor([width / record["width"], height / record["height"]] * 2, dtype=torch.float64)
    if flipped:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return boxes


class _Records(Dataset):
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


def _seed_worker(_):
    """Workers draw from torch's generator, which the loader seeds per worker."""
    torch.set_num_threads(1)


def training_records(cfg) -> list[dict]:
    """The dicts of DATASETS.TRAIN with something to learn."""
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN: expected at least one dataset, got none")
    records = []
    for name in cfg.DATASETS.TRAIN:
        found, categories = load_dataset(name)
        check_num_classes(cfg, name, len(categories))
        records += loaded_proposals(cfg, "TRAIN", name, found)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
    if not records:
        raise DatasetError(f"DATASETS.TRAIN: no image of {', '.join(cfg.DATASETS.TRAIN)} has a usable annotation")
    return records


def loaded_proposals(cfg, split: str, name: str, records: list[dict]) -> list[dict]:
    """The dicts of a dataset of ``split``, with the proposals of its file if MODEL.LOAD_PROPOSALS."""
    file = proposal_file(cfg, split, name)
    return add_proposals(records, file, cfg.DATASETS.TRUST_PROPOSAL_PICKLES) if file else records


def build_train_loader(cfg, seed: int, start_iteration: int = 0):
    """Batches of SOLVER.IMS_PER_BATCH mapped records, without end."""
    records = training_records(cfg)
    sampler = EndlessShuffle(len(records), seed, start_iteration * cfg.SOLVER.IMS_PER_BATCH)
    generator = torch.Generator().manual_seed(seed + start_iteration)
    loader = DataLoader(
        _Records(records, Mapper(cfg, training=True)),
        batch_size=1,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_one,
        worker_init_fn=_seed_worker,
        generator=generator,
    )
    return _AspectGroups(loader, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.ASPECT_RATIO_GROUPING)


def build_test_loader(cfg, records):
    """Mapped records one by one, in order."""
    mapper = Mapper(cfg, training=False)
    return DataLoader(
        _Records(records, mapper), batch_size=1, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=_one,
        worker_init_fn=_seed_worker,
    )  # fmt: skip
