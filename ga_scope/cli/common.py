"""What the commands share: their arguments, and how they end."""

import argparse
import sys
import traceback
from collections.abc import Callable

import torch

from ..engines import ENGINES
from ..errors import InputError, Interrupted

DEBUG = "--debug"


def plain_parser(text: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is a text: what stands before the line ``Examples:``, the options, and the rest.

    It has what every command has: ``--debug`` (:func:`end_well`).
    """
    description, _, examples = text.partition("\nExamples:\n")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description.strip(),
        epilog=f"Examples:\n{examples.rstrip()}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error, too")
    return parser


def argument_parser(text: str, prog: str | None = None, required: bool = True) -> argparse.ArgumentParser:
    """A :func:`plain_parser` with ``--config-file`` and ``--engine``; :func:`parse` adds the overrides."""
    parser = plain_parser(text, prog)
    parser.add_argument(
        "--config-file",
        "--config",
        required=required,
        metavar="FILE",
        help="yaml: a file, or the name of one of the project's, as COCO-Detection/ga_faster_rcnn_R_50_FPN_1x",
    )
    add_engine(parser)
    return parser


def add_engine(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="auto: detectron2 where it is installed, else the built-in engine on torchvision",
    )


def add_processes(parser: argparse.ArgumentParser):
    """The arguments of :meth:`ga_scope.engines.Engine.launch`."""
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine, one for each GPU")
    parser.add_argument("--num-machines", type=int, default=1, help="that this command runs on")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    parser.add_argument("--dist-url", default=None, help="where the machines meet: tcp://HOST:PORT of the first")


def parse(
    parser: argparse.ArgumentParser,
    argv=None,
    metavar: str = "KEY VALUE",
    text: str = "overrides, as MODEL.WEIGHTS model_final.pth",
) -> argparse.Namespace:
    """The arguments, and what follows them, ``opts``: overrides of the configuration."""
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar=metavar, help=text)
    return parser.parse_args(argv)


def end_well(main: Callable):
    """Runs a command; what is wrong with the input is one line, after the traceback where ``--debug`` asks for it."""
    try:
        main()
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        line = what_to_say(error)
        if line is None:
            raise
        if DEBUG in sys.argv:
            traceback.print_exc()
            print(getattr(error, "details", ""), file=sys.stderr)  # with the traceback of a loader's process
        sys.exit(line)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        sys.exit("interrupted")


def what_to_say(error: Exception) -> str | None:
    """One line for people; None of what is wrong with the program itself."""
    if isinstance(error, InputError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    # torch has a class of its own for a device's memory alone.
    text = " ".join(str(error).split())
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if named or any(words in text for words in ("can't allocate memory", "out of memory")):
        return (
            f"out of memory ({text[:200] or 'of the host'}): try a smaller SOLVER.IMS_PER_BATCH, INPUT.MIN_SIZE_TRAIN "
            "or INPUT.MIN_SIZE_TEST, or DATALOADER.NUM_WORKERS 0"
        )
    if "gloo/transport" in text or isinstance(error, torch.distributed.DistBackendError):
        return (
            f"another process of this run ended, or cannot be reached any more; what it said last is why ({text[:200]})"
        )
    if "Expected more than 1 value per channel" in text:  # of torch's batch_norm and group_norm
        return (
            "MODEL: a normalisation layer has one number to normalise, on a map of 1 x 1: try a larger "
            "SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN, NORM FrozenBN, or with GN a larger MODEL.FPN.OUT_CHANNELS"
        )
    return None
