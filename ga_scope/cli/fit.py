"""``fit``: a detector of one's own things."""

from ..fitting import SYSTEMS, fit
from . import report
from .common import add_engine, parse, plain_parser

REPORTED = 500  # images that the page is made of: a minute or two

HELP = """Trains a detector on a data set of your own, a few hundred photos say, in one call.

Input size, sizes of anchors, augmentation and schedule follow from the images and objects; each setting is printed with
its reason. The weights of the best evaluation are kept (model_best.pth), beside a configuration like any other
(config.yaml) and a page that shows the run on up to 500 images of --val (report.html): `ga-scope predict --run`,
`report` and `export` take the folder. KEY VALUE pairs at the end override what follows from the data.

Examples:
  ga-scope fit --train train.json images --val val.json images --output output/mine
  ga-scope fit --train train.json images --val val.json images --system scopenet --backbone convnext_tiny
  ga-scope fit --train train.json images --val val.json images SOLVER.MAX_ITER 300 INPUT.RANDOM_FLIP both

Exit status: 0, or 1 after one line that says what is wrong.
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    for name, words in (("train", "learn from"), ("val", "evaluate on")):
        parser.add_argument(f"--{name}", nargs=2, required=True, metavar=("JSON", "FOLDER"),
                            help=f"annotations in COCO's format and images to {words}")  # fmt: skip
    parser.add_argument("--system", choices=SYSTEMS, default="ga_faster_rcnn", help="default: %(default)s")
    parser.add_argument(
        "--backbone", default="lite0", help="lite0, whose weights a package brings, or a model of timm (default: lite0)"
    )
    parser.add_argument("--output", default="output/fit", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the output folder")
    add_engine(parser)
    args = parse(parser, argv, text="over what follows from the data, as SOLVER.MAX_ITER 300")
    fitted = fit(args.train, args.val, args.system, args.backbone, args.output, args.opts, args.engine, args.resume)
    print(f"{fitted.config}\n{fitted.weights}")
    report.write([args.output], None, args.engine, None, REPORTED, [])
