"""``explain``: a key of the configuration, or what a trained model misses."""

import textwrap
from pathlib import Path

from ..api import Detector
from ..config.describe import facts, find_keys, similar_keys
from ..config.schema import Key
from ..errors import ConfigError
from ..evaluation import write_json
from ..evaluation.explanation import explain
from .common import argument_parser, parse

HELP = """Says what keys of the configuration mean; or, of a trained model, where it loses the objects of a dataset.

KEY is a whole name (MODEL.RPN.NMS_THRESH), the beginning of several (MODEL.GUIDED_ANCHORING.LOCATION) or the end of
one (SIGMA): its meaning, what values are expected, the default, and which parts read it.

With --config-file and --dataset it runs the model. Of one with a GA-RPN it says at which stage, from location to
proposal, objects get lost, and what to try; of a detector, what its classes and what its boxes cost.

Examples:
  ga-scope explain MODEL.GUIDED_ANCHORING.SIGMA
  ga-scope explain SOLVER
  ga-scope explain --config mine.yaml --dataset mine_val MODEL.WEIGHTS output/mine/model_final.pth
  ga-scope explain --config mine.yaml --dataset mine_val --limit 50 --output why.json MODEL.WEIGHTS model.pth

Exit status: 0, or 1 after one line that says what is wrong.
"""


def main(argv=None, prog=None):
    parser = argument_parser(HELP, prog, required=False)
    parser.add_argument("--dataset", help="name of a dataset with annotations")
    parser.add_argument("--limit", type=int, default=500, help="number of images (default: 500)")
    parser.add_argument("--iou", type=float, default=0.5, help="from which an object counts as found (default: 0.5)")
    parser.add_argument("--output", type=Path, help="JSON file for the same in numbers")
    args = parse(parser, argv, metavar="KEY [VALUE]", text="keys to explain; with --config-file, overrides")
    if (args.config_file is None) != (args.dataset is None):
        parser.error("--config-file, --dataset: expected both, or neither and a KEY")
    if args.config_file is None and not args.opts:
        parser.error("expected a KEY, or --config-file and --dataset")
    if args.config_file is None:
        print("\n\n".join(text_of(key) for name in args.opts for key in _keys(name)))
        return
    detector = Detector(args.config_file, overrides=args.opts, engine=args.engine)
    dataset = detector.engine.find_dataset(args.dataset, False).first(args.limit)
    text, numbers = explain(detector, dataset, args.iou)
    print(text)
    if args.output:
        write_json(args.output, numbers, indent=2)


def _keys(name: str) -> list[Key]:
    found = find_keys(name)
    if not found:
        close = similar_keys(name)
        hint = f"; similar: {', '.join(close)}" if close else ""
        raise ConfigError(f"{name}: no such key of this project{hint}")
    return found


def text_of(key: Key, width: int = 100) -> str:
    """A key as lines for a terminal."""
    lines = [key.name]
    for name, text in facts(key):
        lines += textwrap.wrap(text, width, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12)
    return "\n".join(lines)
