#!/usr/bin/env python3
"""Says whether a trained detector loses more to its classes or to its boxes.

explain_detections.py --config-file configs/shapes/scopenet_R_18_FPN.yaml --dataset shapes_4000_val \\
    MODEL.WEIGHTS model_final.pth
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import CLASSES_UNDER, ConfigError
from ga_scope.data import load_dataset
from ga_scope.data.coco import DatasetError
from ga_scope.evaluation.mended import MendedEvaluation
from ga_scope.train import ENGINES, choose_engine


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--dataset", required=True, help="name of a dataset with annotations")
    parser.add_argument("--limit", type=int, default=500, help="number of images (default: 500)")
    parser.add_argument("--output", type=Path, help="JSON file for the same in numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.WEIGHTS FILE")
    args = parser.parse_args(argv)
    package = f"ga_scope.integrations.{choose_engine(args.engine)}"
    cfg = importlib.import_module(f"{package}.run").setup(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE not in CLASSES_UNDER:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: expected a detector ({', '.join(CLASSES_UNDER)}), got "
            f"{cfg.MODEL.META_ARCHITECTURE}; explain.py is for proposals"
        )
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    records, categories = load_dataset(args.dataset)
    records = records[: args.limit]
    evaluation = MendedEvaluation(records, categories)
    for record in tqdm(records, mininterval=5):
        found = predictor(record)
        evaluation.add(record, found.boxes, found.scores, found.classes)
    print(evaluation.text())
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(evaluation.metrics(), indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
