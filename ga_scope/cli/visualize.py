"""``visualize``: pictures of what a trained model does with the images of a dataset."""

from pathlib import Path

from ..api import Detector
from ..visualization.gallery import draw_gallery
from .common import argument_parser, parse

HELP = """Draws what a trained model does with a dataset's images: locations, anchors, proposals and detections against
the objects, or ScopeNet's bins.

Of a ScopeNet also anchors.png, its anchors against the distances that the dataset has, and scores.png, its scores
against the true IoU. Of photos that are in no dataset: `ga-scope predict --maps`.

Examples:
  ga-scope visualize --config mine.yaml --dataset mine_val --output pictures MODEL.WEIGHTS output/mine/model_final.pth
  ga-scope visualize --config mine.yaml --dataset mine_val --limit 20 --score-thresh 0.3 --output pictures \\
      MODEL.WEIGHTS output/mine/model_final.pth
"""


def main(argv=None, prog=None):
    parser = argument_parser(HELP, prog)
    parser.add_argument("--dataset", required=True, help="name of a dataset")
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures")
    parser.add_argument("--limit", type=int, default=None, help="number of pictures (default: all)")
    parser.add_argument("--score-thresh", type=float, default=0.5, help="of the detections drawn (default: 0.5)")
    args = parse(parser, argv)
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    dataset = detector.engine.find_dataset(args.dataset, False)
    print("\n".join(draw_gallery(args.output, detector, dataset, args.limit, args.score_thresh)))
