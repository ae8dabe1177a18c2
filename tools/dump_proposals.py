#!/usr/bin/env python3
"""``ga-scope proposals``: a model's proposals, for Fast R-CNN and fine-tuning."""

from ga_scope.cli import end_well
from ga_scope.cli.proposals import main

if __name__ == "__main__":
    end_well(main)
