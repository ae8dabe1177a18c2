#!/usr/bin/env python3
"""Says where a trained model loses the objects of a dataset, and what to try.

explain.py --config-file configs/shapes/ga_rpn_R_18_FPN.yaml --dataset shapes_val MODEL.WEIGHTS model_final.pth

Of a model with a GA-RPN: at which stage, from location to proposal. Of a detector: to its classes, or to its boxes.
"""

from pathlib import Path

from ga_scope import Detector, cli
from ga_scope.evaluation import write_json
from ga_scope.evaluation.explanation import explain


def main(argv=None):
    parser = cli.argument_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="name of a dataset with annotations")
    parser.add_argument("--limit", type=int, default=500, help="number of images (default: 500)")
    parser.add_argument("--iou", type=float, default=0.5, help="from which an object counts as found (default: 0.5)")
    parser.add_argument("--output", type=Path, help="JSON file for the same in numbers")
    args = cli.parse(parser, argv)
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    dataset = detector.engine.find_dataset(args.dataset, False).first(args.limit)
    text, numbers = explain(detector, dataset, args.iou)
    print(text)
    if args.output:
        write_json(args.output, numbers, indent=2)


if __name__ == "__main__":
    cli.end_well(main)
