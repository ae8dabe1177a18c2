"""``predict``: what a trained model finds in photos and videos."""

import re
import sys
from pathlib import Path

from ..api import Detector
from ..config import SCHEMA
from ..prediction import Options, predict
from .common import add_engine, plain_parser

HELP = """Finds objects in photos, folders, videos and cameras.

INPUT is an image, a video, a folder (with all that is in it), a glob ("photos/**/*.jpg"), the address of a stream
(rtsp://..., http://...) or a camera (camera:0). The dataset need not be there: the names of the classes travel with the
weights. Files that are no images are named and skipped. KEY VALUE pairs override the configuration.

OUTPUT gets
  pictures/, videos/   with boxes, names and scores, under the inputs' own names below their common folder
  detections.json      COCO's format for results; its numbers of images and classes are those of images.json
  detections.csv       a line for every detection: file, frame, seconds, class, score, x1, y1, x2, y2

Videos and cameras need PyAV: pip install 'ga_scope[video]'. Ctrl-C ends a stream; what was found so far is written.

Examples:
  ga-scope predict photo.jpg --run output/mine --output found
  ga-scope predict photos/ clip.mp4 --config mine.yaml --output found MODEL.WEIGHTS output/mine/model_final.pth
  ga-scope predict "photos/**/*.jpg" --run output/mine --output found --batch-size 8 --score-thresh 0.3
  ga-scope predict rtsp://camera.local/stream --run output/mine --output found --no-pictures --limit 1000
  ga-scope predict photos/ --run output/mine --output found --maps     where the detections come from

Exit status: 0, or 1 after one line that says what is wrong.
"""

_ROOTS = {name.split(".")[0] for name in SCHEMA.keys if "." in name}
_PLAIN = {name for name in SCHEMA.keys if "." not in name}


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="what to look at")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", metavar="FOLDER", help="OUTPUT_DIR of a training: its configuration and its weights")
    model.add_argument("--config-file", "--config", metavar="FILE", help="yaml configuration, with MODEL.WEIGHTS")
    add_engine(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--score-thresh", type=float, default=0.5, help="leave out lower scores (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument("--no-pictures", action="store_true", help="JSON and CSV alone")
    parser.add_argument("--maps", action="store_true", help="draw locations, anchors and proposals of photos, too")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of videos, each N-th frame (default: 1)")
    parser.add_argument("--limit", type=int, default=None, help="images and frames in all (default: all)")
    parser.usage = (
        f"{parser.prog} INPUT [INPUT ...] (--run FOLDER | --config-file FILE) --output FOLDER [KEY VALUE ...]"
    )
    own, overrides = split_overrides(sys.argv[1:] if argv is None else list(argv))
    args = parser.parse_args(own)
    for name, least in (("batch_size", 1), ("every", 1), ("limit", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if args.run:
        detector = Detector.of_run(args.run, overrides, args.engine)
    else:
        detector = Detector(args.config_file, overrides=overrides, engine=args.engine)
    options = Options(
        args.score_thresh, args.batch_size, not args.no_pictures, args.maps, args.every, args.limit
    )  # fmt: skip
    counts = predict(detector, args.inputs, args.output, options)
    skipped = f", {counts['skipped']} files skipped" if counts["skipped"] else ""
    print(f"{counts['detections']} detections in {counts['images']} images{skipped} -> {args.output}")


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and the KEY VALUE pairs behind them: from the first that can only be a key."""
    for position, word in enumerate(argv):
        keylike = re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)*", word) is not None
        known = word in _PLAIN or ("." in word and word.split(".")[0] in _ROOTS)
        if keylike and known and not Path(word).exists():
            return argv[:position], argv[position:]
    return argv, []
