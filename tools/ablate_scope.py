#!/usr/bin/env python3
"""Trains and compares the variants of ScopeNet on generated shapes, and writes the comparison as a table.

Runs what is missing, one command at a time, which it prints: stopped at any moment, the same command goes on. What is
only another way of scoring is another evaluation of the same weights, so a training with the quality network (which
leaves everything else as it is, see DistributionQuality) serves three rows.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/shapes/scopenet_R_18_FPN.yaml"
SCOPE = "MODEL.SCOPENET."
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


@dataclass(frozen=True)
class Training:
    """A name for the folder, and what differs from CONFIG."""

    name: str
    overrides: dict = field(default_factory=dict, hash=False)

    def folder(self, output, seed):
        return output / f"{self.name}_s{seed}"


@dataclass(frozen=True)
class Row:
    """One line of the table: a training under one way of scoring."""

    label: str
    training: Training
    rescore: str


DIRECT = Training("n1", {SCOPE + "BINS.NUM": 1})
BINS = Training("n5", {SCOPE + "RESCORE": "distribution"})
NO_SIGMA = Training("nosigma", {SCOPE + "BINS.UNCERTAINTY": False})
SOFT = Training("soft", {SCOPE + "BINS.TARGETS": "soft"})
GIOU = Training("giou", {SCOPE + "LOSS.BOX": "giou"})
DIOU = Training("diou", {SCOPE + "LOSS.BOX": "diou"})
ROWS = [
    Row("N = 1, direct regression", DIRECT, "none"),
    Row("N = 5, σ², no re-score", BINS, "none"),
    Row("N = 5, σ², re-score (the paper)", BINS, "mean"),
    Row("N = 5, no σ², no re-score", NO_SIGMA, "none"),
    Row("N = 5, no σ², re-score", NO_SIGMA, "mean"),
    Row("the paper, with the quality network", BINS, "distribution"),
    Row("the paper, with soft bins", SOFT, "mean"),
    Row("the paper, with GIoU", GIOU, "mean"),
    Row("the paper, with DIoU", DIOU, "mean"),
]


def run(engine, overrides, *flags):
    opts = [str(part) for pair in overrides.items() for part in pair]
    command = ["train_net.py", "--engine", engine, "--config-file", CONFIG, *flags, *opts]
    print("python", " ".join(repr(part) if "(" in part else part for part in command), flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def measure(row, seed, args):
    """Metrics of a row, from the runs that are there and those that it makes."""
    folder = row.training.folder(args.output, seed)
    weights = folder / "model_final.pth"
    common = dict(zip(args.opts[::2], args.opts[1::2]))
    if not weights.exists():
        more = {"SEED": seed, "OUTPUT_DIR": folder, "DATASETS.TEST": "()"}
        run(args.engine, row.training.overrides | common | more, "--resume")
    found = folder / row.rescore / "metrics.json"
    if not found.exists():
        more = {SCOPE + "RESCORE": row.rescore, "MODEL.WEIGHTS": weights, "OUTPUT_DIR": found.parent}
        run(args.engine, row.training.overrides | common | more, "--eval-only")
    return json.loads(found.read_text())


def table(results):
    """Markdown: mean and, over several seeds, standard deviation, in percent."""
    lines = [f"| | seeds | {' | '.join(METRICS)} |", "| --- " * (2 + len(METRICS)) + "|"]
    for label, by_seed in results.items():
        cells = []
        for metric in METRICS:
            values = [100 * metrics[metric] for metrics in by_seed.values() if metrics[metric] is not None]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "–")
        lines.append(f"| {label} | {', '.join(map(str, by_seed))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help="only these, counted from 1 in the table")
    parser.add_argument("--engine", choices=("detectron2", "torchvision"), default="torchvision")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "scope")
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of what is there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="for every run; after --engine")
    args = parser.parse_args()
    args.output = args.output.resolve()
    results = {}
    rows = [ROWS[n - 1] for n in args.rows] if args.rows else ROWS
    for seed in args.seeds:
        for row in rows:
            there = row.training.folder(args.output, seed) / row.rescore / "metrics.json"
            if there.exists() or not args.report:
                results.setdefault(row.label, {})[seed] = measure(row, seed, args)
                (args.output / "table.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
