#!/usr/bin/env python3
"""Trains or evaluates a model: ``train_net.py --config-file configs/... [KEY VALUE ...]``."""

from ga_scope.cli import end_well, train_net

if __name__ == "__main__":
    end_well(train_net)
