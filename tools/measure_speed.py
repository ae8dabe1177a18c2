#!/usr/bin/env python3
"""Images per second of a trained model on DATASETS.TEST: the median over single images, reading them left out."""

from pathlib import Path

from ga_scope import Detector, cli
from ga_scope.evaluation import write_json
from ga_scope.evaluation.speed import images_per_second


def main(argv=None):
    parser = cli.argument_parser(__doc__)
    parser.add_argument("--limit", type=int, default=60, help="number of images")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = cli.parse(parser, argv)
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    speed = images_per_second(detector, args.limit)
    print(f"{speed:.1f} images / s")
    if args.output:
        write_json(args.output, {"images_per_second": speed})


if __name__ == "__main__":
    cli.end_well(main)
