#!/usr/bin/env python3
"""``ga-scope import``: a data set in Pascal VOC, YOLO or COCO format into this project's layout."""

from ga_scope.cli import end_well
from ga_scope.cli.importing import main

if __name__ == "__main__":
    end_well(main)
