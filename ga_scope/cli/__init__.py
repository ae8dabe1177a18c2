"""The commands: ``ga-scope NAME`` of the installed package, and the scripts of ``tools/``, which are the same code."""

from .common import add_engine, add_processes, argument_parser, end_well, parse, plain_parser
from .train import train_net

__all__ = ["add_engine", "add_processes", "argument_parser", "end_well", "parse", "plain_parser", "train_net"]
