#!/usr/bin/env python3
"""Trains and evaluates: train_net.py --config-file configs/... [--eval-only] [--resume] [KEY VALUE ...]"""

from ga_scope.train import main

if __name__ == "__main__":
    main()
