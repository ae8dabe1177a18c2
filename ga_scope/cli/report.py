"""``report``: a run as a page."""

from pathlib import Path

from ..api import Detector
from ..config import class_key
from ..errors import CheckpointError, DatasetError
from ..evaluation.report import write_text
from ..reporting.facts import collect
from ..reporting.page import render
from .common import add_engine, plain_parser

HELP = """Writes one HTML file that shows a run, or two runs side by side.

RUN is the OUTPUT_DIR of a training. The model is run on DATASETS.TEST (or --dataset). The page shows losses and metrics
over time, AP of every class, precision against recall, what was taken for what, recall by size and shape, what a score
is worth (of a ScopeNet p_cls and p_loc, too), where a GA-RPN loses objects, the worst misses and false alarms with
location maps. It needs no network, and can be read on a phone.

Examples:
  ga-scope report output/mine
  ga-scope report output/mine output/other --output compared.html
  ga-scope report output/mine --dataset mine_train --limit 200 --opts MODEL.DEVICE cpu

Exit status: 0, or 1 after one line that says what is wrong.
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training; one, or two to compare")
    add_engine(parser)
    parser.add_argument("--dataset", help="name of a dataset with annotations (default: the first of DATASETS.TEST)")
    parser.add_argument("--limit", type=int, default=None, help="number of images (default: all)")
    parser.add_argument(
        "--output", type=Path, default=None, help="file to write (default: report.html in the first RUN)"
    )
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the configurations")
    args = parser.parse_args(argv)
    if len(args.runs) > 2:
        parser.error(f"expected one RUN, or two to compare, got {len(args.runs)}")
    write(args.runs, args.output, args.engine, args.dataset, args.limit, args.opts)


def write(runs: list[str], output: Path | None, engine: str, dataset: str | None, limit: int | None, opts: list):
    """The page of one or two runs, and a line that says where it is."""
    names = [Path(run).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = runs
    facts = [_collect(run, name, engine, dataset, limit, opts) for run, name in zip(runs, names)]
    path = write_text(output or Path(runs[0]) / "report.html", render(facts))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _collect(run, name, engine, dataset, limit, opts):
    detector = Detector.of_run(run, opts, engine)
    wanted = dataset or next(iter(detector.cfg.DATASETS.TEST), None)
    if wanted is None:
        raise DatasetError("DATASETS.TEST: expected a dataset to show, got none; --dataset names one")
    data = detector.engine.dataset(wanted, detector.cfg)
    if class_key(detector.cfg) and detector.classes != data.classes:
        raise CheckpointError(
            f"{run}: was trained on the classes {', '.join(detector.classes)}; {wanted} has {', '.join(data.classes)}"
        )
    if not data.annotated:
        raise DatasetError(f"{wanted}: expected annotations to compare with, got images alone")
    return collect(detector, data.first(limit), run, name)
