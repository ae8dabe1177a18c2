"""The commands: ``ga-scope NAME`` of the installed package, and the scripts of ``tools/``, which are the same code."""

from .common import add_engine, argument_parser, described_parser, end_well, parse
from .train import train_net

__all__ = ["add_engine", "argument_parser", "described_parser", "end_well", "parse", "train_net"]
