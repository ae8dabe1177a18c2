#!/usr/bin/env python3
"""Writes a trained model, of either engine, as a file that runs without this repository (docs/deployment.md).

  export.py --config-file configs/shapes/ga_faster_rcnn_R_18_FPN.yaml --format onnx --output model.onnx \\
    MODEL.WEIGHTS model_final.pth MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST 300
"""

import argparse

from ga_scope import Detector, cli
from ga_scope.export import FORMATS, export


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="yaml configuration")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="FILE")
    args = cli.parse(parser, argv)
    # Weights of detectron2 are those of the built-in engine, whose models are made of what can be exported.
    detector = Detector(args.config_file, overrides=[*args.opts, "MODEL.DEVICE", "cpu"], engine="torchvision")
    print("\n".join(export(detector, args.format, args.output)))


if __name__ == "__main__":
    cli.end_well(main)
