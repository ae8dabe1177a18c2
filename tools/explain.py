#!/usr/bin/env python3
"""Says where a trained GA-RPN loses the objects of a dataset, and what to try.

explain.py --config-file configs/shapes/ga_rpn_R_18_FPN.yaml --dataset shapes_val MODEL.WEIGHTS model_final.pth
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import ConfigError
from ga_scope.data import load_dataset
from ga_scope.data.coco import DatasetError
from ga_scope.diagnosis import Diagnosis
from ga_scope.modeling.guided_anchoring import GuidedAnchorRPN
from ga_scope.train import ENGINES, choose_engine


def diagnose(predictor, records) -> Diagnosis:
    """The :class:`Diagnosis` of a dataset's dicts."""
    rpn = predictor.tap.rpn if predictor.tap else None
    if not isinstance(rpn, GuidedAnchorRPN):
        raise ConfigError("MODEL.PROPOSAL_GENERATOR.NAME: expected GuidedAnchoringRPN: other models have no locations")
    sigma = getattr(rpn.shapes, "sigma", rpn.location_targets.sigma)
    diagnosis = Diagnosis([sigma * stride for stride in rpn.strides], rpn.selection.threshold, rpn.post_nms_topk[1])
    for record in tqdm(records, mininterval=5):
        prediction = predictor(record)
        truth = torch.tensor([a["bbox"] for a in record["annotations"] if not a["iscrowd"]]).view(-1, 4)
        truth[:, 2:] += truth[:, :2]
        scale = prediction.anchors.strides[0] / rpn.strides[0]
        size = (round(record["height"] / scale), round(record["width"] / scale))
        diagnosis.add(rpn, predictor.tap.features, size, prediction.proposals, truth, scale)
    return diagnosis


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--dataset", required=True, help="name of a dataset with annotations")
    parser.add_argument("--limit", type=int, default=500, help="number of images (default: 500)")
    parser.add_argument("--iou", type=float, default=0.5, help="from which an object counts as found (default: 0.5)")
    parser.add_argument("--output", type=Path, help="JSON file for the same in numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.WEIGHTS FILE")
    args = parser.parse_args(argv)
    package = f"ga_scope.integrations.{choose_engine(args.engine)}"
    cfg = importlib.import_module(f"{package}.run").setup(args.config_file, args.opts)
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    diagnosis = diagnose(predictor, load_dataset(args.dataset)[0][: args.limit])
    print(diagnosis.text(args.iou))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(diagnosis.as_dict(args.iou), indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
