"""Benchmarks: one file per operator and model, each compared with named peers in the same run.

``python -m benchmarks`` runs all of them and prints the table of acceptance bars; ``python -m
benchmarks.masked_conv2d`` runs one. ``--csv FILE`` keeps the rows, ``--compare OTHER.csv`` sets them
beside an earlier run's.
"""
