"""What the commands share: their arguments, and how they end."""

import argparse
import logging
import sys
from collections.abc import Callable

from ..engines import ENGINES
from ..errors import InputError


def described_parser(text: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is a text: what stands before the line ``Examples:``, the options, and the rest."""
    description, _, examples = text.partition("\nExamples:\n")
    return argparse.ArgumentParser(
        prog=prog,
        description=description.strip(),
        epilog=f"Examples:\n{examples.rstrip()}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def argument_parser(text: str, prog: str | None = None, required: bool = True) -> argparse.ArgumentParser:
    """A :func:`described_parser` with ``--config-file`` and ``--engine``; :func:`parse` adds the overrides."""
    parser = described_parser(text, prog)
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
    """Runs a command; what is wrong with the input is one line."""
    try:
        main()
    except InputError as error:
        logging.getLogger(__name__).debug("", exc_info=True)
        sys.exit(f"{type(error).__name__}: {_without_traceback(str(error))}")
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _without_traceback(text: str) -> str:
    """torch gives an error of a loader's process the traceback there; the last line of it is the error itself."""
    return text.strip().splitlines()[-1].split(": ", 1)[-1] if text.startswith("Caught ") else text
