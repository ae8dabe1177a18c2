#!/usr/bin/env python3
"""``ga-scope speed``: images per second of a trained model."""

from ga_scope.cli import end_well
from ga_scope.cli.speed import main

if __name__ == "__main__":
    end_well(main)
