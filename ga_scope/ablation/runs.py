"""A run: one training, evaluation or dump of proposals, its command, and the result that proves that it is done."""

import ctypes
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..evaluation import write_json

ROOT = Path(__file__).parents[2]  # of the repository: configurations and tools lie there
RESULT, LOG = "result.json", "log.txt"


class RunFailed(InputError):
    """A run whose command failed; the message names its log."""


@dataclass(frozen=True)
class Run:
    """What to do, for every seed.

    Attributes:
        name: of the folder.
        config: base name of the configuration, completed by the dataset (:meth:`Suite.config`).
        overrides: keys and values of the command line.
        weights: the run whose final weights this one starts from (training) or works with.
        proposals: runs of kind ``dump`` for DATASETS.PROPOSAL_FILES_TRAIN and _TEST.
        kind: ``train`` (and evaluate), ``eval``, ``speed``, or ``dump`` of the proposals of ``split``.
        split: ``train`` or ``test``.
        schedule: the end of the name of a configuration for COCO.
    """

    name: str
    config: str
    overrides: dict = field(default_factory=dict, hash=False)
    weights: "Run | None" = None
    proposals: "tuple[Run, Run] | None" = None
    kind: str = "train"
    split: str = "test"
    schedule: str = "1x"

    def needs(self) -> list["Run"]:
        """The runs that must be done first."""
        return [run for run in (self.weights, *(self.proposals or ())) if run is not None]


DATASETS = {
    "coco": ("configs/COCO-Detection/{config}_R_50_FPN_{schedule}.yaml", "coco_2017_train", "coco_2017_val"),
    "shapes": ("configs/shapes/{config}_R_18_FPN.yaml", "shapes_train", "shapes_val"),
    "bccd": ("configs/real/bccd_{config}.yaml", "bccd_trainval", "bccd_test"),
    "neu_det": ("configs/real/neu_det_{config}.yaml", "neu_det_train", "neu_det_val"),
}


@dataclass(frozen=True)
class Suite:
    """Where runs live and what they have in common."""

    dataset: str
    output: Path
    engine: str
    opts: tuple[str, ...] = ()  # overrides of every training, as a shorter schedule
    continue_runs: bool = False
    gpus: int = 1  # processes of every run but a measurement of speed

    def config(self, run: Run) -> str:
        return DATASETS[self.dataset][0].format(config=run.config, schedule=run.schedule)

    def folder(self, run: Run, seed: int) -> Path:
        return self.output / self.dataset / run.name / f"seed{seed}"

    def command(self, run: Run, seed: int) -> list[str]:
        """What to type for this run, from the repository's root."""
        folder = self.folder(run, seed)
        opts = [part for key, value in run.overrides.items() for part in (key, str(value))]
        if run.weights:
            opts += ["MODEL.WEIGHTS", str(self.folder(run.weights, seed) / "model_final.pth")]
        if run.proposals:
            for split, dump in zip(("TRAIN", "TEST"), run.proposals):
                file = str(self.folder(dump, seed) / "proposals.npz")
                opts += [f"DATASETS.PROPOSAL_FILES_{split}", repr((file,))]
        common = ["--config-file", self.config(run), "--engine", self.engine]
        several = ["--num-gpus", str(self.gpus)] if self.gpus > 1 else []
        if run.kind == "dump":
            name = DATASETS[self.dataset][2 if run.split == "test" else 1]
            target = str(folder / "proposals.npz")
            return ["tools/dump_proposals.py", *common, *several, "--dataset", name, "--output", target, *opts]
        if run.kind == "speed":
            return ["tools/measure_speed.py", *common, "--output", str(folder / "metrics.json"), *opts]
        flags = ["--eval-only"] if run.kind == "eval" else ["--resume"] if self.continue_runs else []
        own = ["OUTPUT_DIR", str(folder), "SEED", str(seed)]
        return ["train_net.py", *common, *several, *flags, *own, *self.opts, *opts]

    def result(self, run: Run, seed: int) -> dict | None:
        """The result of a run that is done, with this very command; else None."""
        path = self.folder(run, seed) / RESULT
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        return result if _without_flags(result["command"]) == _without_flags(self.command(run, seed)) else None

    def typed(self, run: Run, seed: int) -> str:
        """The command as one types it."""
        return shlex.join(["python", *self.command(run, seed)])

    def start(self, run: Run, seed: int, jobs: int = 1) -> "Started":
        """Starts the command in a process of its own; beside others (``jobs``) with its share of the cores."""
        folder, command = self.folder(run, seed), self.command(run, seed)
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(os.cpu_count() // jobs, 1)))
        with open(folder / LOG, "a") as file:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file, preexec_fn=_die_with_us
            )
        return Started(run, seed, command, process)

    def finish(self, started: "Started") -> dict:
        """Waits for its end and writes its result in one step.

        Raises:
            RunFailed: with the last lines of its log.
        """
        folder, command = self.folder(started.run, started.seed), started.command
        if started.process.wait():
            log = folder / LOG
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise RunFailed(f"{shlex.join(command)}: exit code {started.process.returncode}; the end of {log}:\n{tail}")
        metrics = folder / "metrics.json"
        result = {
            "command": command,
            "seconds": round(time.time() - started.at, 1),
            "commit": commit(),
            "machine": machine(),
            "metrics": json.loads(metrics.read_text()) if metrics.exists() else {},
        }
        write_json(folder / RESULT, result, indent=2)
        # Needed to go on after an interruption, no more: a table's would fill a disk.
        for checkpoint in folder.glob("model_[0-9]*.pth"):
            checkpoint.unlink()
        return result


@dataclass
class Started:
    """A run under way."""

    run: Run
    seed: int
    command: list[str]
    process: subprocess.Popen
    at: float = field(default_factory=time.time)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self):
        self.process.kill()
        self.process.wait()


def _without_flags(command):
    return [part for part in command if part != "--resume"]


def _die_with_us():
    """A killed ablate.py takes its run along, or the next one would compete with it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def commit() -> str:
    """The repository's commit, with a + where files differ from it."""

    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")


def machine() -> str:
    """Processor, cores and GPU."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {name}{gpu}"
