#!/usr/bin/env python3
"""Draws what a trained model does with images: location probability, active anchors, proposals, detections."""

import argparse
import importlib
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import CLASSES_UNDER, ConfigError
from ga_scope.data import load_dataset
from ga_scope.data.coco import DatasetError
from ga_scope.train import ENGINES, choose_engine
from ga_scope.visualization import draw_panels

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def folder_records(folder: Path):
    records = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS):
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
        records.append({"file_name": str(path), "image_id": path.stem, "height": height, "width": width})
    if not records:
        raise DatasetError(f"{folder}: no images ({', '.join(sorted(EXTENSIONS))})")
    return records


def class_names(cfg, optional: bool) -> list[str]:
    """Of the dataset to test on; numbers if it is not on this machine and ``optional``; none of a ProposalNetwork."""
    part = CLASSES_UNDER.get(cfg.MODEL.META_ARCHITECTURE)
    if part is None or not cfg.DATASETS.TEST:
        return []
    try:
        return [category["name"] for category in load_dataset(cfg.DATASETS.TEST[0])[1]]
    except DatasetError as error:
        if not optional:
            raise
        print(f"classes by number: {error}")
        return [str(label) for label in range(cfg.MODEL[part].NUM_CLASSES)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--input", required=True, help="a folder of images, or the name of a dataset")
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures")
    parser.add_argument("--limit", type=int, default=20, help="number of images")
    parser.add_argument("--score-thresh", type=float, default=0.5, help="of the detections drawn")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.WEIGHTS FILE")
    args = parser.parse_args()
    package = f"ga_scope.integrations.{choose_engine(args.engine)}"
    cfg = importlib.import_module(f"{package}.run").setup(args.config_file, args.opts)
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    from_folder = Path(args.input).is_dir()
    names = class_names(cfg, optional=from_folder)
    records = folder_records(Path(args.input)) if from_folder else load_dataset(args.input)[0]
    args.output.mkdir(parents=True, exist_ok=True)
    for record in records[: args.limit]:
        truth = None
        if not from_folder:
            boxes = torch.tensor([a["bbox"] for a in record["annotations"] if not a["iscrowd"]]).view(-1, 4)
            truth = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        with Image.open(record["file_name"]) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        path = args.output / f"{Path(record['file_name']).stem}.png"
        draw_panels(path, image, predictor(record), truth, names, args.score_thresh)
    print(f"{min(args.limit, len(records))} pictures in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
