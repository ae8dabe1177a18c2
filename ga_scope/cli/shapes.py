"""``shapes``: detection data that is made, not downloaded."""

import logging
import os

from ..data import make_shapes
from .common import plain_parser

HELP = """Makes detection data in COCO format: coloured shapes on noise, of five classes (ga_scope/data/shapes.py).

The configurations of shapes/ expect them in datasets/shapes.

Examples:
  ga-scope shapes datasets/shapes
  ga-scope train --config shapes/ga_faster_rcnn_R_18_FPN OUTPUT_DIR output/demo
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("output", help="folder for train/, val/ and annotations/")
    parser.add_argument("--train", type=int, default=1000, help="number of training images (default: 1000)")
    parser.add_argument("--val", type=int, default=150, help="number of validation images (default: 150)")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels (default: 192)")
    parser.add_argument("--seed", type=int, default=0, help="other data for another number (default: 0)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_shapes(args.output, args.train, args.val, args.size, args.seed, os.cpu_count())
