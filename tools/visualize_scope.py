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
    """Boxes (G, 4) of a dataset dict, without crowd regions."""
    boxes = [a["bbox"] for a in record["annotations"] if not a["iscrowd"]]
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


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
    ious, sizes, network_boxes, scores = [], [], [], {"p_cls": [], "p_loc": [], "p_box": []}
    for index, record in enumerate(records):
        boxes = ground_truth(record)
        predictor(record)
        height, width = tap.image_size
        sizes.append((height, width))
        network_boxes.append(boxes * torch.tensor([width / record["width"], height / record["height"]] * 2))
        scopes = tap.scopes(record["height"], record["width"])
        ious.append(true_ious(scopes, boxes))
        for values, of_image in zip(scores.values(), (scopes.class_scores, scopes.localization_scores, scopes.scores)):
            values.append(of_image)
        if index < args.limit:
            with Image.open(record["file_name"]) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
            path = args.output / f"{Path(record['file_name']).stem}.png"
            draw_scopes(path, image, scopes, tap.detector, boxes, names, args.score_thresh)
    draw_anchors(args.output / "anchors.png", tap.detector, learned_distances(tap.detector, sizes, network_boxes))
    found = draw_scores(args.output / "scores.png", torch.cat(ious), {k: torch.cat(v) for k, v in scores.items()})
    print("rank correlation with the true IoU:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    print(f"{min(args.limit, len(records))} pictures, anchors.png and scores.png in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
