"""The tables and figures of the two papers as runs that can be repeated (tools/ablate.py)."""
