#!/usr/bin/env python3
"""Draws what a trained ScopeNet knows of a dataset's images.

Writes a picture per image (detections with the bin distributions of their sides), ``anchors.png`` (learned anchors
against the distances that the dataset has) and ``scores.png`` (scores against the true IoU).
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import ConfigError
from ga_scope.data import load_dataset
from ga_scope.data.coco import DatasetError
from ga_scope.train import ENGINES, choose_engine
from ga_scope.visualization.scope import ScopeTap, draw_anchors, draw_scopes, draw_scores, learned_distances, true_ious


def ground_truth(record):
    """Boxes (G, 4) and classes (G,) of a dataset dict, without crowd regions."""
    items = [a for a in record["annotations"] if not a["iscrowd"]]
    boxes = torch.tensor([a["bbox"] for a in items], dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, torch.tensor([a["category_id"] for a in items], dtype=torch.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--input", required=True, help="the name of a dataset")
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures")
    parser.add_argument("--limit", type=int, default=20, help="number of images drawn; scores.png uses all")
    parser.add_argument("--score-thresh", type=float, default=0.3, help="of the detections drawn")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.WEIGHTS FILE")
    args = parser.parse_args()
    package = f"ga_scope.integrations.{choose_engine(args.engine)}"
    cfg = importlib.import_module(f"{package}.run").setup(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE != "ScopeNet":
        raise ConfigError(f"MODEL.META_ARCHITECTURE: expected ScopeNet, got {cfg.MODEL.META_ARCHITECTURE}")
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    tap = ScopeTap(predictor.model)
    records, categories = load_dataset(args.input)
    names = [category["name"] for category in categories]
    args.output.mkdir(parents=True, exist_ok=True)
    ious, class_scores, box_scores, sizes, network_boxes = [], [], [], [], []
    for index, record in enumerate(records):
        boxes, classes = ground_truth(record)
        predictor(record)
        height, width = tap.image_size
        sizes.append((height, width))
        network_boxes.append(boxes * torch.tensor([width / record["width"], height / record["height"]] * 2))
        scopes = tap.scopes(record["height"], record["width"])
        ious.append(true_ious(scopes, boxes, classes))
        class_scores.append(scopes.class_scores)
        box_scores.append(scopes.scores)
        if index < args.limit:
            with Image.open(record["file_name"]) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
            path = args.output / f"{Path(record['file_name']).stem}.png"
            draw_scopes(path, image, scopes, tap.detector, boxes, names, args.score_thresh)
    draw_anchors(args.output / "anchors.png", tap.detector, learned_distances(tap.detector, sizes, network_boxes))
    found = draw_scores(args.output / "scores.png", *(torch.cat(v) for v in (ious, class_scores, box_scores)))
    print(f"rank correlation with the true IoU: p_cls {found[0]:.3f}, p_box {found[1]:.3f}")
    print(f"{min(args.limit, len(records))} pictures, anchors.png and scores.png in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
