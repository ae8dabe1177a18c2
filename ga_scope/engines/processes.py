"""Several processes: how they start, find one another and end. torch.distributed does the rest."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..errors import ConfigError, InputError, Interrupted


def several() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return dist.get_rank() if several() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if several() else 1


def agreed(value):
    """The first process's value, in all of them."""
    if not several():
        return value
    found = [value]
    dist.broadcast_object_list(found)
    return found[0]


def of_all(value) -> list:
    """The values of all processes, in all of them."""
    if not several():
        return [value]
    found = [None] * world()
    dist.all_gather_object(found, value)
    return found


# ---- starting --------------------------------------------------------------------------------------


def under_torchrun() -> bool:
    """Whether a launcher started this process as one of several and said so in the environment, as torchrun does."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def restarted() -> bool:
    """Whether torchrun started this process in place of one that died: it goes on where that one was."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def join(number: int, count: int, local: int, url: str = "env://"):
    """Makes this process one of several: NCCL between GPUs, gloo between CPUs."""
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(local)
    # torchrun's store outlives a restart, and gloo would find the addresses of the dead processes in it (torch 2.14):
    # each life has names of its own.
    store, *_ = next(dist.rendezvous(url, number, count))
    store = dist.PrefixStore(f"life{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=number, world_size=count)


def check_arguments(args):
    """``--num-gpus``, ``--num-machines``, ``--machine-rank``, ``--dist-url`` make sense together and here.

    Raises:
        ConfigError: naming the argument.
    """
    for name, least in (("num_gpus", 1), ("num_machines", 1), ("machine_rank", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(args, name)}")
    if args.machine_rank >= args.num_machines:
        raise ConfigError(f"--machine-rank: expected below --num-machines {args.num_machines}, got {args.machine_rank}")
    if args.num_machines > 1 and not args.dist_url:
        raise ConfigError("--dist-url: expected where the machines meet, as tcp://HOST:PORT of the first, got none")
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus: expected at most {torch.cuda.device_count()}, got {args.num_gpus}")


def free_url() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


def start(main: Callable, per_machine: int, machines: int, machine: int, url: str, args: tuple):
    """Runs ``main(*args)`` in processes of this machine that know all others; the form of detectron2's ``launch``."""
    joined = (per_machine, machines * per_machine, machine * per_machine, url, main, args)
    mp.start_processes(_joined, joined, nprocs=per_machine, start_method="spawn")


def _joined(local, _, count, first, url, main, args):
    join(first + local, count, local, url)
    try:
        main(*args)
    finally:
        dist.destroy_process_group()


def launch(function: Callable, args, start: Callable = start):
    """``function(args)`` in the processes that the command line asks for (:func:`check_arguments`).

    What one of them raises is raised here; a signal to this process is one to all of them.

    Args:
        start: :func:`start`, or detectron2's ``launch``.

    Returns:
        What the first process of this machine returns.
    """
    answers = mp.get_context("spawn").SimpleQueue()
    with _handing_on():
        try:
            url = args.dist_url or free_url()
            start(
                _answering, args.num_gpus, args.num_machines, args.machine_rank, url, args=(function, args, answers)
            )  # fmt: skip
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            found = _drained(answers)
            errors = [value for kind, value in found if kind == "error"]
            # When one dies the others lose their connection: its error is the one to show.
            if errors:
                raise min(errors, key=lambda e: isinstance(e, Interrupted)) from None
            if isinstance(error, mp.ProcessExitedException):
                sys.exit(f"a process ended: {error}")
            raise
    return next(value for kind, value in _drained(answers) if kind == "result")


def _drained(answers) -> list:
    found = []
    while not answers.empty():
        found.append(answers.get())
    return found


def _answering(function, args, answers):
    """In a process of several."""
    _end_with_parent()
    try:
        result = function(args)
    except (InputError, Interrupted) as error:
        answers.put(("error", error))
        sys.exit(1)
    if rank() % args.num_gpus == 0:
        answers.put(("result", result))


def _end_with_parent():
    """A killed command takes its processes along (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _handing_on():
    """SIGTERM goes on to the processes; Ctrl-C has reached them already: a terminal sends it to all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number, frame):
        for child in mp.active_children():
            if number == signal.SIGTERM and child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- ending ----------------------------------------------------------------------------------------


class StopRequest:
    """SIGTERM and Ctrl-C as a request that a training looks at between its steps; a second Ctrl-C ends it at once.

    Attributes:
        signal: that came, None before.
        at_once: where nothing can be left half done, as in an evaluation: a signal raises :class:`Interrupted`.
    """

    def __init__(self):
        self.signal: int | None = None
        self.at_once = False

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self.at_once:
            raise Interrupted(number)


def in_worker(_=None):
    """A worker of a loader shares the cores with the training; of what ends the training it hears from that.

    A signal to a whole group of processes (Ctrl-C, a scheduler's SIGTERM) would end the workers before the training
    has saved.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
