#!/usr/bin/env python3
"""``ga-scope report``: one HTML file of a run, or of two to compare."""

from ga_scope.cli import end_well
from ga_scope.cli.report import main

if __name__ == "__main__":
    end_well(main)
