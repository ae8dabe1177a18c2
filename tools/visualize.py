#!/usr/bin/env python3
"""Draws what a trained model does with images: locations, anchors, proposals and detections, or ScopeNet's bins.

  visualize.py --config-file configs/shapes/ga_faster_rcnn_R_18_FPN.yaml --input photos/ --output pictures/ \\
    MODEL.WEIGHTS model_final.pth

Of a ScopeNet and a dataset also its anchors and its scores against the truth.
"""

from pathlib import Path

from ga_scope import Detector, cli
from ga_scope.data import folder_records
from ga_scope.visualization.gallery import draw_gallery


def main(argv=None):
    parser = cli.argument_parser(__doc__)
    parser.add_argument("--input", required=True, help="a folder of images, or the name of a dataset")
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures")
    parser.add_argument("--limit", type=int, default=None, help="number of pictures (default: all)")
    parser.add_argument("--score-thresh", type=float, default=0.5, help="of the detections drawn (default: 0.5)")
    args = cli.parse(parser, argv)
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    from_folder = Path(args.input).is_dir()
    records = folder_records(args.input) if from_folder else detector.engine.find_dataset(args.input, False)
    print("\n".join(draw_gallery(args.output, detector, records, args.limit, args.score_thresh)))


if __name__ == "__main__":
    cli.end_well(main)
