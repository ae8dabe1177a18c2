"""``proposals``: the proposals of a dataset's images, as a file."""

from collections import deque
from pathlib import Path

from ..api import Detector
from ..data import dump_proposals
from ..engines import get_engine, processes
from .common import add_processes, argument_parser, parse

HELP = """Writes the proposals of a dataset's images, for Fast R-CNN and fine-tuning.

An .npz file holds plain arrays (ga_scope/data/proposals.py) and serves both engines; a .pkl file is the pickle that
detectron2's own loader reads.

Examples:
  ga-scope proposals --config COCO-Detection/ga_rpn_R_50_FPN_1x --dataset coco_2017_val \\
      --output proposals/val.npz MODEL.WEIGHTS ga_rpn.pth
"""


def main(argv=None, prog=None):
    parser = argument_parser(HELP, prog)
    parser.add_argument("--dataset", required=True, help="name of a dataset, of COCO or of DATASETS.REGISTER")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .npz or .pkl")
    parser.add_argument("--limit", type=int, default=None, help="proposals per image (default: all, up to 1000)")
    add_processes(parser)
    args = parse(parser, argv)
    get_engine(args.engine).launch(dump, args)


def dump(args):
    """In each of the processes."""
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    dataset = detector.engine.find_dataset(args.dataset, False)
    results = detector.stream(dataset)
    if processes.rank():
        deque(results, maxlen=0)  # a part of the work; the first process writes
        return
    dump_proposals(args.output, dataset, results, args.limit)
    print(f"proposals of {len(dataset)} images in {args.output}")
