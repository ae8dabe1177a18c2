#!/usr/bin/env python3
"""``ga-scope shapes``: data to try things on."""

from ga_scope.cli import end_well
from ga_scope.cli.shapes import main

if __name__ == "__main__":
    end_well(main)
