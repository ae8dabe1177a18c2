#!/usr/bin/env python3
"""``ga-scope visualize``: what a trained model does with a dataset's images."""

from ga_scope.cli import end_well
from ga_scope.cli.visualize import main

if __name__ == "__main__":
    end_well(main)
