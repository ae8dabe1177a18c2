"""``speed``: images per second of a trained model."""

from pathlib import Path

from ..api import Detector
from ..evaluation import write_json
from ..evaluation.speed import images_per_second
from .common import argument_parser, parse

HELP = """Images per second of a trained model on DATASETS.TEST: the median over single images, reading them left out.

Examples:
  ga-scope speed --config mine.yaml MODEL.WEIGHTS output/mine/model_final.pth
"""


def main(argv=None, prog=None):
    parser = argument_parser(HELP, prog)
    parser.add_argument("--limit", type=int, default=60, help="number of images (default: 60)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parse(parser, argv)
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    speed = images_per_second(detector, args.limit)
    print(f"{speed:.1f} images / s")
    if args.output:
        write_json(args.output, {"images_per_second": speed})
