"""``ga-scope``: one command for all."""

import difflib
import sys
from collections.abc import Callable

from .. import __version__
from .common import end_well

COMMANDS = {
    "import": "a data set in Pascal VOC, YOLO or COCO format into this project's layout",
    "fit": "a detector of your own things in one call: settings, training, evaluation",
    "check": "look at a configuration, its data and its weights before hours of training",
    "train": "train a model, and evaluate it",
    "evaluate": "metrics of a trained model on DATASETS.TEST",
    "predict": "detections of photos, folders, videos, cameras: pictures, JSON, CSV",
    "export": "a trained model as torch.export, AOTInductor or ONNX file",
    "report": "one HTML file of a run, or of two to compare",
    "explain": "what a key means; or where a trained model loses the objects",
    "visualize": "pictures of a dataset: locations, anchors, proposals, detections, objects",
    "convert": "a checkpoint of MMDetection into one of this project",
    "proposals": "write a model's proposals, for Fast R-CNN and fine-tuning",
    "speed": "images per second of a trained model",
    "shapes": "make data to try things on",
    "configs": "the configurations that come with the project",
    "env": "the facts that a bug report needs",
}

USAGE = f"""usage: ga-scope COMMAND ...

Guided Anchoring and ScopeNet, version {__version__}: train, evaluate and use detectors.

Commands:
{{commands}}

`ga-scope COMMAND --help` says more of each, with examples.

Examples:
  ga-scope import voc BCCD_Dataset/BCCD datasets/bccd
  ga-scope check --config mine.yaml
  ga-scope train --config COCO-Detection/ga_faster_rcnn_R_50_FPN_1x OUTPUT_DIR output/mine
  ga-scope report output/mine
  ga-scope predict photos/ --run output/mine --output found
  ga-scope explain MODEL.GUIDED_ANCHORING.SIGMA
"""


def usage() -> str:
    return USAGE.format(commands="\n".join(f"  {name:<11}{words}" for name, words in COMMANDS.items()))


def command_of(name: str) -> Callable:
    """The function (argv, prog) of a command; only its libraries are imported."""
    match name:
        case "import":
            from .importing import main as command
        case "fit":
            from .fit import main as command
        case "check":
            from .check import main as command
        case "train":
            from .train import train as command
        case "evaluate":
            from .train import evaluate as command
        case "predict":
            from .predict import main as command
        case "export":
            from .export import main as command
        case "report":
            from .report import main as command
        case "explain":
            from .explain import main as command
        case "visualize":
            from .visualize import main as command
        case "convert":
            from .convert import main as command
        case "proposals":
            from .proposals import main as command
        case "speed":
            from .speed import main as command
        case "shapes":
            from .shapes import main as command
        case "configs":
            from .configs import main as command
        case "env":
            from ..collect_env import command
        case _:
            raise KeyError(name)
    return command


def main(argv=None):
    """The entry point; exits with 0, with 1 where the input is wrong, or 2 where the command line is."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in COMMANDS:
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"ga-scope: expected one of {', '.join(COMMANDS)}; got {argv[0]!r}{hint}", file=sys.stderr)
        sys.exit(2)
    command = command_of(argv[0])
    end_well(lambda: _exit_code(command(argv[1:], prog=f"ga-scope {argv[0]}")))


def _exit_code(returned):
    """A command may say with a number that what it looked at is not as it should be."""
    if isinstance(returned, int) and returned:
        sys.exit(returned)
