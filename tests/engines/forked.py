"""``train_net.py`` in processes that are copies of this one: they are there at once, and can be killed."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import torch

from ga_scope.engines import processes

from .conftest import run


def fork(function: Callable, *args) -> int:
    """A process that calls ``function(*args)`` and ends with its exit status; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)  # the other threads of a pool were not copied
        torch.cuda.is_available = lambda: False  # a copy cannot use the GPU of its parent
        function(*args)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a process, or minus the signal that ended it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def together(count: int, folder, function: Callable, *args) -> list[int]:
    """``function(rank, *args)`` in so many processes that know one another; their exit statuses."""
    store = f"file://{folder}/store{time.monotonic_ns()}"

    def joined(rank):
        processes.join(rank, count, rank, store)
        function(rank, *args)

    children = [fork(joined, rank) for rank in range(count)]
    return [wait(child) for child in children]


def slow_disk(seconds: float, pipe: int):
    """Every sync of a file takes so long, and begins with a byte into ``pipe``."""
    sync = os.fsync

    def stalled(handle):
        os.write(pipe, b".")
        time.sleep(seconds)
        sync(handle)

    os.fsync = stalled


def killed_training(name, engine, opts, flags, moment: Callable, stall: float = 0.0) -> bool:
    """A training that is killed when ``moment(pipe)`` returns, ``pipe`` giving a byte when it starts and for every sync
    of a file. Whether it was still running.
    """
    reading, writing = os.pipe()

    def train():
        os.close(reading)
        os.write(writing, b".")
        if stall:
            slow_disk(stall, writing)
        run(name, engine, opts, *flags)

    child = fork(train)
    os.close(writing)
    moment(reading)
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    status = wait(child)
    assert status in (0, -signal.SIGKILL), status
    return status != 0
