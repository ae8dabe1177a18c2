#!/usr/bin/env python3
"""Writes the proposals of a dataset's images, for Fast R-CNN and fine-tuning.

  dump_proposals.py --config-file configs/COCO-Detection/ga_rpn_R_50_FPN_1x.yaml --dataset coco_2017_val \\
    --output proposals/val.npz MODEL.WEIGHTS ga_rpn.pth

An .npz file holds plain arrays (ga_scope/data/proposals.py) and serves both engines; a .pkl file is the pickle that
detectron2's own loader reads.
"""

from collections import deque
from pathlib import Path

from ga_scope import Detector, cli
from ga_scope.data import dump_proposals
from ga_scope.engines import get_engine, processes


def main(argv=None):
    parser = cli.argument_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="name of a dataset, of COCO or of DATASETS.REGISTER")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .npz or .pkl")
    parser.add_argument("--limit", type=int, default=None, help="proposals per image (default: all, up to 1000)")
    cli.add_processes(parser)
    args = cli.parse(parser, argv)
    get_engine(args.engine).launch(dump, args)


def dump(args):
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    dataset = detector.engine.find_dataset(args.dataset, False)
    results = detector.stream(dataset)
    if processes.rank():
        deque(results, maxlen=0)  # a part of the work; the first process writes
        return
    dump_proposals(args.output, dataset, results, args.limit)
    print(f"proposals of {len(dataset)} images in {args.output}")


if __name__ == "__main__":
    cli.end_well(main)
