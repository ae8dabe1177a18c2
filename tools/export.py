#!/usr/bin/env python3
"""``ga-scope export``: a trained model as a file that runs without this repository."""

from ga_scope.cli import end_well
from ga_scope.cli.export import main

if __name__ == "__main__":
    end_well(main)
