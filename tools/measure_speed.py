#!/usr/bin/env python3
"""Images per second of a trained model on DATASETS.TEST: the median over single images, reading them left out."""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import ConfigError
from ga_scope.data import load_dataset
from ga_scope.data.coco import DatasetError
from ga_scope.train import ENGINES, choose_engine


@torch.no_grad()
def seconds_per_image(predictor, records, warm_up: int = 3) -> list[float]:
    """One time for each image after the first ``warm_up``."""
    times = []
    for record in records:
        inputs = predictor.mapper(record)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        predictor.model([inputs])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times[warm_up:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--limit", type=int, default=60, help="number of images")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.WEIGHTS FILE")
    args = parser.parse_args()
    package = f"ga_scope.integrations.{choose_engine(args.engine)}"
    cfg = importlib.import_module(f"{package}.run").setup(args.config_file, args.opts)
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    records, _ = load_dataset(cfg.DATASETS.TEST[0])
    speed = 1 / statistics.median(seconds_per_image(predictor, records[: args.limit]))
    print(f"{speed:.1f} images / s")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"images_per_second": speed}) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
