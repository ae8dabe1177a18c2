#!/usr/bin/env python3
"""Makes detection data in COCO format (ga_scope/data/shapes.py)."""

import argparse
import logging
import os

from ga_scope import cli
from ga_scope.data import make_shapes


def main():
    parser = cli.plain_parser(__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output", help="folder for train/, val/ and annotations/")
    parser.add_argument("--train", type=int, default=1000, help="number of training images")
    parser.add_argument("--val", type=int, default=150, help="number of validation images")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_shapes(args.output, args.train, args.val, args.size, args.seed, os.cpu_count())


if __name__ == "__main__":
    cli.end_well(main)
