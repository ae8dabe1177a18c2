"""Runs every benchmark, each in a process of its own, and prints the table of acceptance bars."""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from . import acceptance, harness

NAMES = (
    "deform_conv2d",
    "masked_conv2d",
    "feature_adaption",
    "viou_match",
    "iou_match",
    "nms_mask",
    "location_targets",
    "ga_head",
    "training_step",
    "inference",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which ones (default: all): {', '.join(NAMES)}")
    parser.add_argument("--csv", type=Path, help="write all rows here")
    parser.add_argument("--compare", type=Path, help="rows of an earlier run, to set beside these")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds to spend on each variant (default 2)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f"names: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names or NAMES:
            path = Path(folder) / f"{name}.csv"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--csv", path, "--budget", str(args.budget)]
            if subprocess.run(command).returncode:
                failed.append(name)
            with contextlib.suppress(FileNotFoundError):
                rows += harness.read_csv(path)
    if args.csv:
        harness.write_csv(args.csv, rows)
    if args.compare:
        harness.print_comparison(rows, args.compare)
    print(f"\n{acceptance.report(rows)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
