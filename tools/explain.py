#!/usr/bin/env python3
"""``ga-scope explain``: what a key means; or where a trained model loses the objects."""

from ga_scope.cli import end_well
from ga_scope.cli.explain import main

if __name__ == "__main__":
    end_well(main)
