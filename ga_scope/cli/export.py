"""``export``: a trained model as a file of its own."""

from ..api import Detector
from ..export import FORMATS, export
from .common import parse, plain_parser

HELP = """Writes a trained model, of either engine, as a file that runs without this repository.

pt2 is a torch.export program, aoti an AOTInductor package for C++ without Python, onnx has standard operators alone.
Image size and batch stay open; how images are to be prepared, and the names of the classes, go with the file
(docs/deployment.md).

Examples:
  ga-scope export --config-file output/mine/config.yaml --format onnx --output model.onnx \\
    MODEL.WEIGHTS output/mine/model_final.pth
  ga-scope export --config-file mine.yaml --format pt2 --output model.pt2 MODEL.WEIGHTS model_final.pth \\
    MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST 300

Exit status: 0, or 1 after one line that says what is wrong.
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("--config-file", "--config", required=True, metavar="FILE", help="yaml configuration")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="FILE")
    args = parse(parser, argv)
    # Weights of detectron2 are those of the built-in engine, whose models are made of what can be exported.
    detector = Detector(args.config_file, overrides=[*args.opts, "MODEL.DEVICE", "cpu"], engine="torchvision")
    print("\n".join(export(detector, args.format, args.output)))
