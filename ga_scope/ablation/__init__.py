"""Every table and figure of the Guided Anchoring paper as runs that can be repeated (tools/ablate.py)."""
