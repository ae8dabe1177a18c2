#!/usr/bin/env python3
"""``ga-scope predict``: detections of photos, folders, videos, cameras."""

from ga_scope.cli import end_well
from ga_scope.cli.predict import main

if __name__ == "__main__":
    end_well(main)
