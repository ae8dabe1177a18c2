#!/usr/bin/env python3
"""``ga-scope convert``: a checkpoint of MMDetection into one of this project."""

import sys

from ga_scope.cli import end_well
from ga_scope.cli.convert import main

if __name__ == "__main__":
    end_well(lambda: sys.exit(main()))
