"""Two processes: gradients, weights and metrics of one, the same order of images, a common end; torchrun's restarts."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ga_scope.cli.proposals import dump as dump_share
from ga_scope.engines import get_engine, processes
from ga_scope.engines.loader import train_loader
from ga_scope.engines.trainer import Trainer
from ga_scope.modeling.layers import SyncBatchNorm2d

from .conftest import ENGINES, ROOT, config, image_size, overrides, random_weights, run
from .forked import fork, together, wait
from .test_training import assert_same, content
from .tiny import use_tiny_model


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What the copies of this process need is there once."""
    use_tiny_model(lambda *_: None)


def tiny():
    use_tiny_model(setattr)


def options(shapes, output, **more):
    settings = {"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.IMS_PER_BATCH": 4, "DATASETS.TEST": ()}
    return overrides(shapes, output, **(settings | more))


def joined(engine, rank):
    """What detectron2's launcher does beside joining."""
    if engine == "detectron2":
        from detectron2.utils import comm

        comm.create_local_process_group(2)


# ---- a step ----------------------------------------------------------------------------------------


def first_gradients(rank, name, opts, output):
    """Those of the first step of the built-in engine, the same in all processes."""
    engine = get_engine("torchvision")
    cfg = engine.setup(config(name), opts)
    trainer = Trainer(engine, cfg, engine.training_records(cfg), None)
    seen = {}

    def keep(*_):
        seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.checkpointer.save = lambda *_, **__: None
    trainer.train()
    if rank == 0:
        torch.save(seen, output)


@pytest.mark.parametrize("name", ["retinanet", "scopenet"])
@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_of_two_processes_or_parts_are_those_of_the_batch(name, parts, shapes, tmp_path):
    """The losses' divisors are the whole batch's, however it is divided."""
    more = {"MODEL.FPN.OUT_CHANNELS": 32, "SOLVER.MAX_ITER": 1, "MODEL.RESNETS.NORM": "FrozenBN"}
    opts = options(shapes, tmp_path / "one", **more)
    assert wait(fork(first_gradients, 0, name, opts, tmp_path / "one.pth")) == 0
    divided = [*options(shapes, tmp_path / "two", **more), "SOLVER.ACCUMULATION_STEPS", str(parts)]
    arguments = (name, divided, tmp_path / "two.pth")
    if parts == 1:
        assert together(2, tmp_path, first_gradients, *arguments) == [0, 0]
    else:
        assert wait(fork(first_gradients, 0, *arguments)) == 0
    found, expected = (torch.load(tmp_path / f"{n}.pth") for n in ("two", "one"))
    assert set(found) == set(expected) and len(expected) > 20
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-2
    for key, value in expected.items():
        assert float((found[key] - value).abs().max()) <= 1e-6 * max(largest, 1), key


def normalised(rank, output):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 7) * 3 + 1
    weights = torch.randn(4, 6, 5, 7)
    norm = SyncBatchNorm2d(6) if processes.world() > 1 else torch.nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6))
    own = slice(None) if processes.world() == 1 else slice(0, 1) if rank == 0 else slice(1, 4)  # of other sizes
    part = x[own].clone().requires_grad_()
    y = norm(part)
    (y * weights[own]).sum().backward()
    for gradient in (norm.weight.grad, norm.bias.grad) if processes.world() > 1 else ():
        dist.all_reduce(gradient)
    state = {"y": y.detach(), "x": part.grad, "mean": norm.running_mean, "var": norm.running_var,
             "weight": norm.weight.grad, "bias": norm.bias.grad}  # fmt: skip
    torch.save(state, f"{output}{rank}")


def test_batch_normalisation_over_processes_is_that_of_the_batch(tmp_path):
    assert wait(fork(normalised, 0, tmp_path / "one")) == 0
    assert together(2, tmp_path, normalised, tmp_path / "two") == [0, 0]
    expected = torch.load(tmp_path / "one0")
    first, second = (torch.load(tmp_path / f"two{rank}") for rank in (0, 1))
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), expected[key], rtol=1e-4, atol=1e-5)
    for key in ("mean", "var", "weight", "bias"):
        torch.testing.assert_close(first[key], expected[key], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first[key], second[key])


# ---- a run -----------------------------------------------------------------------------------------


def train(rank, engine, name, opts, *flags):
    joined(engine, rank)
    if name == "tiny":
        tiny()
        name = "ga_rpn"
    run(name, engine, opts, *flags)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_of_two_processes_equals_one_that_never_stopped(engine, shapes, tmp_path):
    more = {"DATALOADER.NUM_WORKERS": 1, "MODEL_EMA.ENABLED": True, "SEED": -1}
    assert together(2, tmp_path, train, engine, "tiny", options(shapes, tmp_path / "a", **more)) == [0, 0]
    whole = content(tmp_path / "a")
    (tmp_path / "a" / "model_final.pth").unlink()
    assert together(2, tmp_path, train, engine, "tiny", options(shapes, tmp_path / "a", **more), "--resume") == [0, 0]
    assert_same(content(tmp_path / "a"), whole)


def interrupted(rank, engine, opts):
    tiny()
    joined(engine, rank)
    step = Trainer._step

    def signalled(self, *args):
        if rank == 1 and self.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *args)

    Trainer._step = signalled
    run("ga_rpn", engine, opts)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(engine, shapes, tmp_path):
    """Within two steps; and the run goes on from there."""
    opts = options(shapes, tmp_path / "a", **{"SOLVER.MAX_ITER": 40, "SOLVER.CHECKPOINT_PERIOD": 50})
    assert together(2, tmp_path, interrupted, engine, opts) == [128 + signal.SIGTERM] * 2
    (path,) = (tmp_path / "a").glob("model_*.pth")
    assert path.name in ("model_0000001.pth", "model_0000002.pth")


def diverging(rank, engine, opts):
    tiny()
    joined(engine, rank)
    kind = type(get_engine(engine))
    losses = kind.losses

    def broken(self, model, inputs, iteration):
        found = losses(self, model, inputs, iteration)
        return {k: v * float("nan") for k, v in found.items()} if iteration == 2 and rank == 1 else found

    kind.losses = broken
    run("ga_rpn", engine, opts)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_one_process_that_is_not_finite_ends_all(engine, shapes, tmp_path):
    assert together(2, tmp_path, diverging, engine, options(shapes, tmp_path / "a")) == [1, 1]
    assert [p.name for p in (tmp_path / "a").glob("*.pth")] == ["model_0000001.pth"]
    assert all(value.isfinite().all() for value in content(tmp_path / "a", "model_0000001")["model"].values())


class _Positions:
    """In place of a mapper: where in the run an image is."""

    def __call__(self, record):
        return {"image_id": record["image_id"], "draw": float(torch.rand(()))}


def listed(rank, opts, parts, output):
    engine = get_engine("torchvision")
    cfg = engine.setup(config("ga_rpn"), [*opts, "SOLVER.ACCUMULATION_STEPS", str(parts)])
    loader = iter(train_loader(cfg, engine.training_records(cfg), _Positions(), 7))
    steps = [[x for _ in range(parts) for x in next(loader)] for _ in range(9)]
    output.with_name(f"{output.name}{rank}").write_text(json.dumps(steps))


def test_every_number_of_processes_sees_the_same_images(shapes, tmp_path):
    """Step by step, augmented alike."""
    opts, found = options(shapes, tmp_path), {}
    for count, parts in ((1, 1), (2, 1), (2, 2), (4, 1), (1, 4)):
        path = tmp_path / f"list{count}{parts}"
        assert together(count, tmp_path, listed, opts, parts, path) == [0] * count
        shares = [json.loads(path.with_name(f"{path.name}{rank}").read_text()) for rank in range(count)]
        assert all(len(share[0]) == 4 // count for share in shares)
        steps = [[x for share in step for x in share] for step in zip(*shares)]
        found[count, parts] = [sorted((x["image_id"], x["draw"]) for x in step) for step in steps]
    assert len({str(value) for value in found.values()}) == 1
    assert len(set(map(str, found[1, 1]))) == 9


def test_images_that_cannot_be_divided_are_named(shapes, tmp_path):
    """Among processes, or parts."""
    with pytest.raises(SystemExit, match="SOLVER.IMS_PER_BATCH: expected a multiple of 3 .1 processes, .* 3., got 4"):
        run("ga_rpn", "torchvision", options(shapes, tmp_path, **{"SOLVER.ACCUMULATION_STEPS": 3}))


# ---- evaluation, dump ------------------------------------------------------------------------------


def evaluate(rank, engine, opts):
    joined(engine, rank)
    run("ga_faster_rcnn", engine, opts, "--eval-only")


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_of_two_processes_are_those_of_one(engine, shapes, tmp_path):
    more = {"DATASETS.TEST": (f"val_{shapes.parent.name}",), "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, **image_size(64)}
    more["MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD"] = 0.0
    weights = random_weights("ga_faster_rcnn", options(shapes, tmp_path, **more), tmp_path)[-2:]
    for count in (1, 2):
        opts = [*options(shapes, tmp_path / str(count), **more), *weights]
        if count == 1:
            assert wait(fork(run, "ga_faster_rcnn", engine, opts, "--eval-only")) == 0
        else:
            assert together(2, tmp_path, evaluate, engine, opts) == [0, 0]
    one, two = (json.loads((tmp_path / str(n) / "metrics.json").read_text()) for n in (1, 2))
    assert one == two and one["anchors_per_image"] > 0 and "AP" in one
    found = [json.loads((tmp_path / str(n) / "coco_instances_results.json").read_text()) for n in (1, 2)]
    assert sorted(map(str, found[0])) == sorted(map(str, found[1])) and found[0]


def dump(rank, engine, arguments):
    joined(engine, rank)
    dump_share(argparse.Namespace(**arguments))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dump_of_three_processes_is_that_of_one(engine, shapes, random_rpn, tmp_path):
    """Of ten images: one has four, the others three. In the dataset's order."""
    arguments = {"config_file": config("ga_rpn"), "engine": engine, "opts": random_rpn, "limit": 20}
    arguments |= {"dataset": f"val_{shapes.parent.name}"}
    assert wait(fork(dump, 0, "torchvision", arguments | {"output": tmp_path / "1.npz"})) == 0
    assert together(3, tmp_path, dump, "torchvision", arguments | {"output": tmp_path / "3.npz"}) == [0] * 3
    one, three = (dict(np.load(tmp_path / f"{count}.npz")) for count in (1, 3))
    assert set(one) == set(three) and len(one["boxes"]) > 100
    assert all(np.array_equal(one[key], three[key]) for key in one)


# ---- commands --------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from tests.engines.tiny import use_tiny_model
use_tiny_model(setattr, {engine!r})
if {die!r}:
    from ga_scope.engines import processes
    from ga_scope.engines.trainer import Trainer
    step = Trainer._step
    def dies(self, *args):
        if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and processes.rank() == 1 and self.done == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *args)
    Trainer._step = dies
from ga_scope.cli import end_well, train_net
if __name__ == "__main__":
    end_well(train_net)
"""


def script(tmp_path, engine, die=False):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(engine=engine, die=die))
    return path


def command(arguments, folder):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=[pytest.mark.detectron2, pytest.mark.long])]
)
def test_a_worker_killed_under_torchrun_is_started_again_and_goes_on(engine, shapes, tmp_path):
    """By itself, from the last checkpoint, to the weights of a run that nobody killed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    own = [str(script(tmp_path, engine, die=True)), "--config-file", config("ga_rpn"), "--engine", engine]
    done = command([*launcher, *own, *options(shapes, tmp_path / "killed")], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"model_000000[12]\.pth: resuming at iteration [23]\n", done.stdout + done.stderr)
    assert together(2, tmp_path, train, engine, "tiny", options(shapes, tmp_path / "whole")) == [0, 0]
    assert_same(content(tmp_path / "killed"), content(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=[pytest.mark.detectron2, pytest.mark.long])]
)
def test_num_gpus_starts_the_processes_and_says_what_went_wrong_in_one(engine, shapes, tmp_path):
    """On CPUs here: as many processes. One line of the error of whichever it was, and the exit status of a failure."""
    own = [str(script(tmp_path, engine)), "--config-file", config("ga_rpn"), "--engine", engine]
    opts = options(shapes, tmp_path / "out")
    done = command([*own, "--num-gpus", "2", *opts], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert together(2, tmp_path, train, engine, "tiny", options(shapes, tmp_path / "whole")) == [0, 0]
    assert_same(content(tmp_path / "out"), content(tmp_path / "whole"))
    done = command([*own, "--num-gpus", "3", *opts], tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ConfigError: SOLVER.IMS_PER_BATCH: expected a multiple of 3")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num-gpus", "0"], "--num-gpus: expected at least 1, got 0"),
        (["--num-machines", "2"], "--dist-url: expected where the machines meet"),
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank: expected below --num-machines 2, got 2"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_arguments_that_make_no_sense_are_named(engine, flags, message, shapes, tmp_path):
    with pytest.raises(SystemExit, match=f"ConfigError: {message}"):
        run("ga_rpn", engine, options(shapes, tmp_path), *flags)
