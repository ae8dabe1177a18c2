"""``import``: a data set of another layout."""

import argparse

from ..data.importers import FORMATS, ImportOptions, import_dataset
from .common import plain_parser

HELP = """Brings a data set in Pascal VOC, YOLO or COCO format into this project's layout.

OUTPUT/annotations/instances_SPLIT.json is written for every split of the source, OUTPUT/images links to its images.
All that was dropped, mended or only noticed is counted, listed in OUTPUT/import_report.txt and .json, and printed in
short. What each format is taken to mean: docs/importing.md.

Examples:
  ga-scope import voc BCCD_Dataset/BCCD datasets/bccd
  ga-scope import yolo ships/data.yaml datasets/ships
  ga-scope import coco photos datasets/photos --hold-out val=0.2

Exit status: 0, or 1 after one line that says what is wrong.
"""


def pair(text):
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def fraction(text):
    name, value = pair(text)
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=FRACTION, got {text!r}") from None


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("source", help="folder; or the yaml file (yolo), or one annotation file (coco)")
    parser.add_argument("output", help="folder to write, for example datasets/bccd")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="voc, coco: the classes and their "
                        "order, others are dropped; yolo: names by index, equal names are one class")  # fmt: skip
    parser.add_argument("--split", type=pair, action="append", default=[], metavar="NAME=PATH", help="a split, instead "
                        "of the source's own: folder of labels (voc), of images (yolo), or annotation file (coco), "
                        "from the source; '.' is all of it; may be repeated")  # fmt: skip
    parser.add_argument("--hold-out", type=fraction, metavar="NAME=FRACTION", help="of a source of one split: a second "
                        "one of that fraction of its images")  # fmt: skip
    parser.add_argument("--images", action="append", default=[], metavar="FOLDER", help="a folder with images beside "
                        "the source; may be repeated")  # fmt: skip
    parser.add_argument("--unlabelled", choices=("drop", "background"), default="drop", help="what becomes of images "
                        "without a label (default: %(default)s)")  # fmt: skip
    parser.add_argument("--difficult", choices=("keep", "ignore", "drop"), default="keep", help="voc: what becomes of "
                        "boxes with that mark (default: %(default)s)")  # fmt: skip
    parser.add_argument("--pixels", choices=("auto", "one-based", "edges"), default="auto", help="voc: pixels that "
                        "count from 1, inclusive, or edges as written; auto: one-based in PASCAL's own")  # fmt: skip
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    args = parser.parse_args(argv)
    options = ImportOptions(
        classes=tuple(args.classes),
        splits=dict(args.split),
        hold_out=args.hold_out,
        images=tuple(args.images),
        unlabelled=args.unlabelled,
        difficult=args.difficult,
        pixels=args.pixels,
        copy=args.copy,
    )
    print(import_dataset(args.format, args.source, args.output, options).as_text(most=3))
