"""Runs campaigns: ``python -m tests.fuzz annotations 10000 images 2000 checkpoints 500 configurations 2000``."""

import argparse
import resource
import sys
import time
from functools import partial

import torch

from . import campaigns

KINDS = {name: getattr(campaigns, name) for name in ("annotations", "images", "checkpoints", "configurations")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", metavar="KIND COUNT", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--chunk", type=int, default=100, help="inputs between two lines of output")
    parser.add_argument("--gigabytes", type=int, default=10, help="of memory that the process may ask for")
    parser.add_argument("--train-every", type=int, default=1, help="of the configurations, one of so many is trained")
    args = parser.parse_args()
    KINDS["configurations"] = partial(campaigns.configurations, train_every=args.train_every)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (args.gigabytes << 30,) * 2)
    faults = 0
    for kind, count in zip(args.what[::2], map(int, args.what[1::2])):
        total, began = campaigns.Outcomes(), time.time()
        for first in range(args.first, args.first + count, args.chunk):
            found = KINDS[kind](min(args.chunk, args.first + count - first), args.seed, first)
            total.counts += found.counts
            total.faults += found.faults
            for fault in found.faults:
                print(fault, flush=True)
            print(f"{kind}: {total.as_text()}; {time.time() - began:.0f} s", flush=True)
        faults += len(total.faults)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
