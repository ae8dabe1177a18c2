"""``check``: what a training would find out late."""

import time

import numpy as np
import torch

from ..config import class_key, flat, get
from ..config.files import find_config
from ..data import Dataset, open_image
from ..data.images import resized_shape
from ..engines import Engine, get_engine
from ..errors import DatasetError
from .common import argument_parser, parse

HELP = """Looks at a configuration, its data and its weights before hours of training.

Every key is checked; the datasets of DATASETS.TRAIN and TEST are read, their classes and boxes counted, all their
images opened; the model is built; MODEL.WEIGHTS, if given, must fit it; two images go through it. What is wrong is
one line that names the key, the file or the entry.

Examples:
  ga-scope check --config mine.yaml
  ga-scope check --config mine.yaml --images 100               open 100 images of each dataset
  ga-scope check --config mine.yaml MODEL.WEIGHTS output/mine/model_final.pth

Exit status: 0, or 1 after one line that says what is wrong, or where images cannot be read.
"""

BROKEN_SHOWN = 10


def main(argv=None, prog=None) -> int:
    """0, or 1 where images cannot be read."""
    parser = argument_parser(HELP, prog)
    parser.add_argument("--images", type=int, default=None, help="number of images to open of each dataset (all)")
    args = parse(parser, argv)
    engine = get_engine(args.engine)
    path = find_config(args.config_file)
    cfg = engine.setup(path, args.opts)
    print(f"{path}: {len(flat(cfg))} keys, of {engine.name}: {cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.DEVICE}")
    broken = 0
    for part, datasets in (("TRAIN", engine.training_sets(cfg)), ("TEST", engine.test_sets(cfg))):
        for dataset in datasets:
            print(f"DATASETS.{part}: {describe(cfg, dataset)}")
            broken += count_broken(dataset, args.images)
    check_model(engine, cfg)
    print("ready" if not broken else f"{broken} images cannot be read: a training would end at the first")
    return 1 if broken else 0


def describe(cfg, dataset: Dataset) -> str:
    """Images, classes with their numbers of objects, and how large the objects are in the network."""
    boxes, labels, scales = [], [], []
    for index in range(len(dataset)):
        found, classes = dataset.objects(index)
        boxes.append(found)
        labels.append(classes)
        height, width = int(dataset.heights[index]), int(dataset.widths[index])
        rows, _ = resized_shape(height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        scales += [rows / height] * len(found)
    boxes, labels = np.concatenate(boxes), np.concatenate(labels)
    text = f"{dataset.name}: {len(dataset)} images, {len(boxes)} objects"
    if not len(boxes):
        return text
    counts = np.bincount(labels, minlength=len(dataset.classes))
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) * np.array(scales)
    low, middle, high = np.percentile(sides, [5, 50, 95])
    classes = ", ".join(f"{name} {count}" for name, count in zip(dataset.classes, counts))
    return f"{text}\n  {classes}\n  sides in the network: {low:.0f} to {high:.0f} px, median {middle:.0f} (5 to 95 %)"


def count_broken(dataset: Dataset, most: int | None) -> int:
    """Images that cannot be opened or have another size than the annotations say; the first of them are named."""
    broken, count = 0, len(dataset) if most is None else min(most, len(dataset))
    for index in range(count):
        record = dataset.image(index)
        try:
            size = open_image(record["file_name"]).size
            if size != (record["width"], record["height"]):
                raise DatasetError(
                    f"{record['file_name']}: expected {record['width']} x {record['height']} pixels (the "
                    f"annotations), got {size[0]} x {size[1]}"
                )
        except DatasetError as error:
            broken += 1
            if broken <= BROKEN_SHOWN:
                print(f"  {error}")
    print(f"  {count - broken} of {count} images can be read")
    return broken


def check_model(engine: Engine, cfg):
    """Builds the model, loads what weights there are, and times two images, or one where there is one."""
    if cfg.MODEL.WEIGHTS:
        model, classes = engine.load(cfg)
        key = class_key(cfg)
        named = f", of {', '.join(classes)}" if classes and key and len(classes) == get(cfg, key) else ""
        print(f"{cfg.MODEL.WEIGHTS}: fits the model{named}")
    else:
        model = engine.build(cfg).eval()
    count = sum(p.numel() for p in model.parameters())
    line = f"model: {count / 1e6:.1f} million parameters"
    datasets = engine.test_sets(cfg)
    if datasets:
        records = [datasets[0][i] for i in range(min(2, len(datasets[0])))]
        began = time.perf_counter()
        found = sum(1 for _ in engine.predict(cfg, model, records))
        line += f"; {found} images in {time.perf_counter() - began:.1f} s ({torch.get_num_threads()} threads)"
    print(line)
