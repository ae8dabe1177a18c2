"""``export``: a trained model as a file that runs without this repository."""

from ..api import Detector
from ..export import FORMATS, export
from .common import parse, plain_parser

HELP = """Writes a trained model, of either engine, as a file that runs without this repository (docs/deployment.md).

Examples:
  ga-scope export --config mine.yaml --format onnx --output mine.onnx MODEL.WEIGHTS output/mine/model_final.pth
  ga-scope export --config shapes/ga_faster_rcnn_R_18_FPN --format pt2 --output model.pt2 \\
      MODEL.WEIGHTS model_final.pth MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST 300

Exit status: 0, or 1 after one line that says what is wrong.
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("--config-file", "--config", required=True, metavar="FILE", help="yaml configuration")
    parser.add_argument("--format", required=True, choices=FORMATS, help="of the file")
    parser.add_argument("--output", required=True, metavar="FILE", help="to write")
    args = parse(parser, argv)
    # Weights of detectron2 are those of the built-in engine, whose models are made of what can be exported.
    detector = Detector(args.config_file, overrides=[*args.opts, "MODEL.DEVICE", "cpu"], engine="torchvision")
    print("\n".join(export(detector, args.format, args.output)))
