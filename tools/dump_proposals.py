#!/usr/bin/env python3
"""Writes the proposals of a dataset's images, for Fast R-CNN and fine-tuning.

  dump_proposals.py --config-file configs/COCO-Detection/ga_rpn_R_50_FPN_1x.yaml --dataset coco_2017_val \\
    --output proposals/val.npz MODEL.WEIGHTS ga_rpn.pth

An .npz file holds plain arrays (ga_scope/data/proposals.py) and serves both engines; --format detectron2 writes the
pickle that detectron2's own loader reads.
"""

import argparse
import importlib
import sys
from pathlib import Path

from tqdm import tqdm

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import ConfigError
from ga_scope.data import load_dataset, save_proposals
from ga_scope.data.coco import DatasetError
from ga_scope.train import ENGINES, choose_engine

SUFFIX = {"npz": ".npz", "detectron2": ".pkl"}


def dump(predictor, records, limit=None) -> dict:
    """{image id: (boxes, logits)}, the ``limit`` best of every image."""
    found = {}
    for record in tqdm(records, mininterval=5):
        prediction = predictor(record)
        if prediction.proposals is None:
            raise ConfigError("MODEL.META_ARCHITECTURE: expected a model that makes proposals")
        found[record["image_id"]] = (prediction.proposals[:limit].numpy(), prediction.proposal_logits[:limit].numpy())
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--dataset", required=True, help="name of a dataset, of COCO or of DATASETS.REGISTER")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .npz (or .pkl)")
    parser.add_argument("--format", choices=SUFFIX, default="npz")
    parser.add_argument("--limit", type=int, default=None, help="proposals per image (default: all, up to 1000)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.WEIGHTS FILE")
    args = parser.parse_args(argv)
    if args.output.suffix != SUFFIX[args.format]:
        raise ConfigError(
            f"--output: expected a name that ends in {SUFFIX[args.format]} for format {args.format}, got {args.output}"
        )
    package = f"ga_scope.integrations.{choose_engine(args.engine)}"
    cfg = importlib.import_module(f"{package}.run").setup(args.config_file, args.opts)
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    records, _ = load_dataset(args.dataset)
    path = save_proposals(args.output, dump(predictor, records, args.limit))
    print(f"proposals of {len(records)} images in {path}")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
