"""``fit``: a detector of one's own things in one command."""

from pathlib import Path

from ..evaluation import report
from ..fit import SYSTEMS, as_text, fit
from .common import add_engine, parse, plain_parser
from .report import main as write_report

HELP = """Trains a detector of your own things: settings follow from the data, by rules that are printed.

Number of classes, size of the input, sizes of the anchors, augmentation and schedule are chosen; the best weights are
kept and evaluated; OUTPUT gets a configuration and a checkpoint like any other, and report.html. KEY VALUE pairs at the
end stand over what follows from the data. `ga-scope import` makes the annotation files from Pascal VOC and YOLO.

Examples:
  ga-scope fit --train datasets/bccd/annotations/instances_train.json datasets/bccd/images \\
      --val datasets/bccd/annotations/instances_val.json datasets/bccd/images --output output/bccd
  ga-scope predict photos/ --run output/bccd --output found

Exit status: 0, or 1 after one line that says what is wrong.
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    for name, what in (("train", "to learn from"), ("val", "to evaluate on")):
        parser.add_argument(
            f"--{name}", required=True, nargs=2, metavar=("JSON", "FOLDER"), help=f"annotations and images {what}"
        )
    parser.add_argument("--system", choices=SYSTEMS, default="ga_faster_rcnn", help="default: %(default)s")
    parser.add_argument("--backbone", default="lite0", help="lite0, or a model of timm (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/fit"), help="folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT")
    add_engine(parser)
    args = parse(parser, argv)
    fitted = fit(
        args.train, args.val, args.system, args.backbone, args.output, args.opts, args.engine, args.resume
    )  # fmt: skip
    print(f"settings that followed from the data:\n{as_text(fitted.rules)}")
    report(fitted.metrics, args.output)
    write_report([str(args.output), "--engine", args.engine])
