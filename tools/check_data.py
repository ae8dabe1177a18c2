#!/usr/bin/env python3
"""``ga-scope check``: a look at a configuration, its data and its weights."""

import sys

from ga_scope.cli import end_well
from ga_scope.cli.check import main

if __name__ == "__main__":
    end_well(lambda: sys.exit(main()))
