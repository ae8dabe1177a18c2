"""What holds for the training of either engine: exact resuming however it stopped, divergence, what a step does."""

import itertools
import json
import logging
import os
import re
import resource
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import torch

from ga_scope.engines import get_engine, trainer
from ga_scope.engines.loader import WEIGHTS, Batches, seed_everything, train_loader
from ga_scope.engines.solver import Average, build_lr_schedule, clip_gradients
from ga_scope.engines.trainer import Trainer
from ga_scope.errors import ConfigError, DatasetError

from .conftest import ENGINES, config, overrides, run, setup
from .tiny import use_tiny_model


def options(shapes, output, **more):
    """Five steps; a checkpoint after three."""
    settings = {
        "SOLVER.MAX_ITER": 5,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "MODEL.FPN.OUT_CHANNELS": 32,
        "INPUT.MIN_SIZE_TRAIN": (48, 64),
        "DATASETS.TEST": (),
    }
    return overrides(shapes, output, **(settings | more))


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Trainings of a model of a thousand parameters with BatchNorm and numbers of every generator, in either engine."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_model(patch.setattr)
        yield


def content(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)


def tensors(state, prefix=""):
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {name: value for key, part in items for name, value in tensors(part, f"{prefix}.{key}").items()}


def assert_same(found, expected):
    """Every tensor of two checkpoints, bit by bit: weights, what the optimizer keeps, averages."""
    found, expected = ({n: v for n, v in tensors(x).items() if "ga_scope" not in n} for x in (found, expected))
    assert set(found) == set(expected) and len(found) > 20
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different, f"{len(different)} of {len(expected)} differ: {different[:3]}"


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """Folders of trainings in one go, by engine and settings."""
    folders = {}

    def get(engine, **more):
        key = (engine, tuple(map(str, more.items())))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("whole")
            run("ga_rpn", engine, options(shapes, folders[key], **more))
        return folders[key]

    return get


def checkpoint_of(whole, folder):
    """A copy of a run's folder without its end."""
    shutil.copytree(whole, folder)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    return folder


# ---- resuming --------------------------------------------------------------------------------------

SETTINGS = [
    {"DATALOADER.NUM_WORKERS": 1},
    {"DATALOADER.NUM_WORKERS": 2, "SEED": -1},
    {"SEED": -1, "DATALOADER.ASPECT_RATIO_GROUPING": False},
    {"MODEL_EMA.ENABLED": True, "SOLVER.OPTIMIZER": "SGD"},
    {"SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"},
]


def assert_resumes(name, engine, shapes, whole, parts, more):
    """From the checkpoint of three steps to five: every tensor. Images of two shapes wait in groups meanwhile."""
    checkpoint_of(whole, parts)
    run(name, engine, options(shapes, parts, **more), "--resume")
    assert_same(content(parts), content(whole))
    weights = [content(whole, step)["model"] for step in ("model_0000002", "model_final")]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    log = [json.loads(line)["iteration"] for line in (parts / "training.jsonl").read_text().splitlines()]
    assert log == [5]  # not a second line of the steps that were done again


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("more", SETTINGS, ids=str)
def test_a_resumed_run_equals_one_that_never_stopped(engine, more, shapes, whole, tmp_path):
    more = more | {"SOLVER.IMS_PER_BATCH": 4}
    assert_resumes("ga_rpn", engine, shapes, whole(engine, **more), tmp_path / "parts", more)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_scale_goes_on(engine, shapes, tmp_path, monkeypatch):
    """float16's, here on a CPU, of a scale that doubles every other step."""
    scaled = lambda *_: (torch.float16, torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2))  # noqa: E731
    monkeypatch.setattr(trainer, "_precision", scaled)
    run("ga_rpn", engine, options(shapes, tmp_path / "whole"))
    parts = checkpoint_of(tmp_path / "whole", tmp_path / "parts")
    run("ga_rpn", engine, options(shapes, parts), "--resume")
    found, expected = content(parts), content(tmp_path / "whole")
    assert_same(found, expected)
    assert found["scaler"] == expected["scaler"] and found["scaler"]["scale"] == 4096.0
    assert content(parts, "model_0000002")["scaler"]["scale"] == 2048.0


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_change_nothing(engine, whole):
    assert_same(content(whole(engine, **{"DATALOADER.NUM_WORKERS": 2})), content(whole(engine)))


def test_another_seed_is_another_run(whole):
    one, other = (content(whole("torchvision", SEED=seed))["model"] for seed in (-1, 7))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def stopped(engine, monkeypatch, when, what):
    """Calls ``what`` in the step of iteration ``when``, after its forward pass, once."""
    kind, calls = type(get_engine(engine)), []
    losses = kind.losses

    def replaced(self, model, inputs, iteration):
        found = losses(self, model, inputs, iteration)
        if iteration == when and not calls:
            calls.append(1)
            found = what(found) or found
        return found

    monkeypatch.setattr(kind, "losses", replaced)


def raises(_):
    raise DatasetError("broken.jpg: cannot be read")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "what, left, message",
    [
        (raises, "model_0000003", "DatasetError: broken.jpg"),
        (lambda _: os.kill(os.getpid(), signal.SIGTERM), "model_0000004", 128 + signal.SIGTERM),
        (lambda _: os.kill(os.getpid(), signal.SIGINT), "model_0000004", 128 + signal.SIGINT),
        (lambda _: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)], "model_0000003", "interrupted"),
    ],
    ids=["exception", "SIGTERM", "Ctrl-C", "Ctrl-C twice"],
)
def test_a_run_that_is_stopped_loses_no_step(engine, what, left, message, shapes, whole, tmp_path, monkeypatch, capsys):
    """In the middle of the fifth of six steps; what the half step did to BatchNorm's statistics is taken back."""
    more = {"SOLVER.MAX_ITER": 6}
    stopped(engine, monkeypatch, 4, what)
    with pytest.raises(SystemExit) as end:
        run("ga_rpn", engine, options(shapes, tmp_path, **more))
    assert (message in end.value.code) if isinstance(message, str) else (end.value.code == message)
    if not isinstance(message, str):
        assert re.search(rf"stopped by SIG\w+ after iteration 5: saved .*{left}.pth", capsys.readouterr().err)
    assert (tmp_path / "last_checkpoint").read_text() == f"{left}.pth"
    run("ga_rpn", engine, options(shapes, tmp_path, **more), "--resume")
    assert_same(content(tmp_path), content(whole(engine, **more)))


def weighed(engine, monkeypatch, shapes, before=lambda: None):
    """Evaluations whose metric is a number of the weights; ``before`` each of them. Their dataset's name."""
    name = f"val_{shapes.parent.name}"

    def evaluate(self, cfg, model, classes=None):
        before()
        return {name: {"AP": float(sum(value.sum() for value in model.parameters()))}}

    monkeypatch.setattr(type(get_engine(engine)), "evaluate", evaluate)
    return name


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_in_an_evaluation_ends_it_at_once(engine, shapes, tmp_path, monkeypatch):
    """The evaluation is done again where the run goes on, and what it decides is decided then."""
    calls = []
    name = weighed(engine, monkeypatch, shapes)
    more = {"TEST.EVAL_PERIOD": 2, "DATASETS.TEST": (name,), "TEST.BEST_METRIC": "AP", "MODEL_EMA.ENABLED": True}
    run("ga_rpn", engine, options(shapes, tmp_path / "whole", **more))

    def kill_the_second():
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the evaluation went on")

    weighed(engine, monkeypatch, shapes, kill_the_second)
    with pytest.raises(SystemExit) as end:
        run("ga_rpn", engine, options(shapes, tmp_path / "parts", **more))
    assert end.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_0000003.pth"
    run("ga_rpn", engine, options(shapes, tmp_path / "parts", **more), "--resume")
    assert len(calls) == 4
    found, expected = content(tmp_path / "parts"), content(tmp_path / "whole")
    assert_same(found, expected)
    assert found["run"] == expected["run"] and found["run"]["best"] is not None
    best = [content(tmp_path / folder, "model_best") for folder in ("parts", "whole")]
    assert best[0]["metrics"] == best[1]["metrics"] and best[0]["iteration"] == best[1]["iteration"]
    assert all(torch.equal(value, best[1]["model"][key]) for key, value in best[0]["model"].items())


@pytest.mark.parametrize("engine", ENGINES)
def test_resuming_a_finished_run_only_evaluates(engine, shapes, tmp_path, monkeypatch):
    name = weighed(engine, monkeypatch, shapes)
    opts = options(shapes, tmp_path, **{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": (name,)})
    first, before = run("ga_rpn", engine, opts), (tmp_path / "model_final.pth").stat().st_mtime_ns
    assert run("ga_rpn", engine, opts, "--resume") == first and first
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == before


def test_a_new_run_in_the_folder_of_an_earlier_one_is_not_taken_for_it(shapes, whole, tmp_path, monkeypatch, caplog):
    """Killed before its first checkpoint, it begins anew, and the earlier one's file is named."""
    folder = checkpoint_of(whole("torchvision"), tmp_path / "folder")
    stopped("torchvision", monkeypatch, 0, raises)
    with pytest.raises(SystemExit, match="broken.jpg"):
        run("ga_rpn", "torchvision", options(shapes, folder, SEED=3))
    run("ga_rpn", "torchvision", options(shapes, folder, SEED=3), "--resume")
    assert "model_0000002.pth: is of an earlier run than the last one" in caplog.text
    assert_same(content(folder), content(whole("torchvision", SEED=3)))


def test_without_a_checkpoint_a_resumed_run_says_that_it_starts_anew(shapes, tmp_path, caplog):
    run("ga_rpn", "torchvision", options(shapes, tmp_path, **{"SOLVER.MAX_ITER": 1}), "--resume")
    assert f"{tmp_path}: no checkpoint to resume from: the run starts anew" in caplog.text


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SOLVER.OPTIMIZER", "SGD", "was trained with SOLVER.OPTIMIZER 'ADAMW', not 'SGD'"),
        ("SOLVER.IMS_PER_BATCH", 4, "was trained with SOLVER.IMS_PER_BATCH 2, not 4"),
        ("SEED", 5, "was trained with SEED 0, not 5"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, r"was trained on \d+ images, DATASETS.TRAIN has 24"),
        ("MODEL_EMA.ENABLED", True, "was trained with MODEL_EMA.ENABLED False, not True"),
    ],
)
def test_a_run_that_cannot_go_on_as_it_began_is_refused(key, value, message, shapes, whole, tmp_path):
    """case_17: a traceback of the optimizer."""
    parts = checkpoint_of(whole("torchvision"), tmp_path / "parts")
    with pytest.raises(SystemExit, match=f"^CheckpointError: .*model_0000002.pth: {message}"):
        run("ga_rpn", "torchvision", options(shapes, parts, **{key: value}), "--resume")


@pytest.mark.detectron2
@pytest.mark.parametrize("first, second", [("torchvision", "detectron2"), ("detectron2", "torchvision")])
def test_the_other_engine_does_not_resume_a_run(first, second, shapes, whole, tmp_path):
    """Its optimizer has the parameters in another order."""
    parts = checkpoint_of(whole(first), tmp_path / "parts")
    with pytest.raises(SystemExit, match=f"^CheckpointError: .*is of the other engine: --engine {first} resumes it"):
        run("ga_rpn", second, options(shapes, parts), "--resume")


# ---- damaged checkpoints ---------------------------------------------------------------------------


def flipped(path):
    """One bit of one weight: torch loads it without a word."""
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["head.weight"]
    data[data.find(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["head.weight"], weight)


def not_finite(path):
    state = torch.load(path, weights_only=True)
    state["model"]["head.weight"][0, 0] = float("nan")
    torch.save(state, path)


DAMAGES = {
    "empty": (lambda p: p.write_bytes(b""), "not a checkpoint that can be read"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-5000]), "not a checkpoint that can be read"),
    "one bit": (flipped, "damaged: .*/data/.* has not the checksum that it was written with"),
    "gone": (lambda p: p.unlink(), "no such checkpoint"),
    "not finite": (
        not_finite,
        "expected finite numbers, got others in 1 of .* tensors, the first of them .*head.weight",
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_damaged_checkpoints_the_newest_healthy_one_is_taken(engine, damage, shapes, whole, tmp_path, caplog):
    """And the warning says so; the run ends where it would have."""
    parts = tmp_path / "parts"
    shutil.copytree(whole(engine), parts)
    do, message = DAMAGES[damage]
    do(parts / "model_final.pth")
    with caplog.at_level(logging.WARNING, "ga_scope"):
        run("ga_rpn", engine, options(shapes, parts), "--resume")
    assert re.search(f"model_final.pth: {message}.*; taken instead: .*model_0000002.pth", caplog.text), caplog.text
    assert_same(content(parts), content(whole(engine)))


@pytest.mark.parametrize("pointer", [b"", b"\0\0\0", b"model_0000777.pth", b"../elsewhere.pth", b"\xff\xfe", None])
def test_a_damaged_pointer_is_no_loss(pointer, shapes, whole, tmp_path):
    parts = checkpoint_of(whole("torchvision"), tmp_path / "parts")
    (parts / "last_checkpoint").unlink()
    if pointer is not None:
        (parts / "last_checkpoint").write_bytes(pointer)
    run("ga_rpn", "torchvision", options(shapes, parts), "--resume")
    assert_same(content(parts), content(whole("torchvision")))


def test_where_all_are_damaged_nothing_is_started_over(shapes, whole, tmp_path):
    parts = checkpoint_of(whole("torchvision"), tmp_path / "parts")
    flipped(parts / "model_0000002.pth")
    with pytest.raises(
        SystemExit, match="CheckpointError: .*expected a healthy checkpoint to resume from, got none: .*2.pth"
    ):
        run("ga_rpn", "torchvision", options(shapes, parts), "--resume")
    weights = ["MODEL.WEIGHTS", str(parts / "model_0000002.pth")]
    with pytest.raises(SystemExit, match="CheckpointError: .*model_0000002.pth: damaged"):  # to evaluate or start from
        run("ga_rpn", "torchvision", [*options(shapes, tmp_path / "new"), *weights])


# ---- disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_that_fills_in_a_save_loses_nothing(engine, shapes, whole, tmp_path):
    """The operating system's own refusal, here of a limit for files, in the middle of writing the second checkpoint."""
    parts = checkpoint_of(whole(engine), tmp_path / "parts")
    before, limits = (parts / "model_0000002.pth").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(SystemExit, match="CheckpointError: .*model_final.pth: cannot be written: File too large"):
            run("ga_rpn", engine, options(shapes, parts), "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (parts / "model_0000002.pth").read_bytes() == before
    assert [p.name for p in parts.glob("*model_*")] == ["model_0000002.pth"] and not list(parts.glob("*.part"))
    run("ga_rpn", engine, options(shapes, parts), "--resume")
    assert_same(content(parts), content(whole(engine)))


def test_a_folder_that_cannot_be_written_is_named_before_the_training(shapes, tmp_path, monkeypatch):
    """A read-only file system refuses even root."""
    import tempfile

    def refuses(*args, dir=None, **kwargs):
        raise OSError(30, os.strerror(30), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(
        SystemExit, match=f"ConfigError: OUTPUT_DIR: .* a folder to write to, got {tmp_path}: Read-only"
    ):
        run("ga_rpn", "torchvision", options(shapes, tmp_path))


# ---- divergence (A1) -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(engine, kind, shapes, whole, tmp_path, monkeypatch):
    """The message has the loss, the images, the learning rate, what is left and what to try; --resume goes on."""

    def breaks(losses):
        name = next(iter(losses))
        if kind == "loss":
            return losses | {name: losses[name] * float("nan")}
        value = losses[name]
        value.register_hook(lambda gradient: gradient * float("inf"))

    stopped(engine, monkeypatch, 4, breaks)
    with pytest.raises(SystemExit) as end:
        run("ga_rpn", engine, options(shapes, tmp_path))
    text = end.value.code
    said = (
        "a loss is not finite: loss_a nan" if kind == "loss" else "a gradient is not finite, the losses are: total_loss"
    )
    assert re.search(rf"^TrainingError: iteration 5: {said}.*, loss_b .*; images: .*train.*jpg", text), text
    assert ("nan" in text) == (kind == "loss") and "learning rate" in text and "SOLVER.BASE_LR" in text
    assert f"{tmp_path / 'model_0000002.pth'} is from before it" in text and "\n" not in text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_0000002.pth"]
    run("ga_rpn", engine, options(shapes, tmp_path), "--resume")
    assert_same(content(tmp_path), content(whole(engine)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_diverges_can_go_on_with_a_lower_rate(engine, shapes, tmp_path):
    """case_01: it saved its broken weights and made them the newest."""
    more = {
        "SOLVER.MAX_ITER": 60, "SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.OPTIMIZER": "SGD", "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.BASE_LR": 1e6, "SOLVER.CLIP_GRADIENTS.ENABLED": False, "SOLVER.MAX_TO_KEEP": 2,
    }  # fmt: skip
    weights = options(shapes, tmp_path, **(more | {"SOLVER.MAX_ITER": 2, "SOLVER.BASE_LR": 1e-5}))
    run("ga_rpn", engine, weights)
    with pytest.raises(SystemExit, match=r"^TrainingError: iteration \d+: .* is not finite"):
        run("ga_rpn", engine, options(shapes, tmp_path, **more), "--resume")
    for path in tmp_path.glob("*.pth"):
        assert all(value.isfinite().all() for value in tensors(torch.load(path, weights_only=True)).values()), path
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    run(
        "ga_rpn",
        engine,
        options(shapes, tmp_path, **(more | {"SOLVER.BASE_LR": 1e-5, "SOLVER.MAX_ITER": 4})),
        "--resume",
    )
    assert content(tmp_path)["iteration"] == 3


def test_after_a_step_that_is_not_finite_no_later_one_is_taken(shapes, tmp_path):
    """Where a device is a step ahead of what the host has seen, the device itself leaves the later steps out."""
    engine, cfg = get_engine("torchvision"), setup("ga_rpn", options(shapes, tmp_path))
    training = Trainer(engine, cfg, engine.training_records(cfg), None)
    batches = iter(train_loader(cfg, training.records, engine.mapper(cfg), training.seed))
    training.stop = type("Stop", (), {"signal": None})()
    training._step([next(batches)], 0.0)
    before = [value.detach().clone() for value in training.model.parameters()]
    losses = engine.losses
    engine.losses = lambda *args: {k: v * float("inf") for k, v in losses(*args).items()}
    training._step([next(batches)], 0.0)
    engine.losses = losses
    training._step([next(batches)], 0.0)
    assert all(torch.equal(value, old) for value, old in zip(training.model.parameters(), before))
    assert [bool(step.values[-2]) for step in training.pending] == [False, True, True]


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu(shapes, tmp_path):
    """Of a model that does not: torch itself makes every wait an error."""
    engine, cfg = get_engine("torchvision"), setup("ga_rpn", options(shapes, tmp_path, **{"MODEL.DEVICE": "cuda"}))
    training = Trainer(engine, cfg, engine.training_records(cfg), None)
    batches = iter(train_loader(cfg, training.records, engine.mapper(cfg), training.seed))
    training.stop = type("Stop", (), {"signal": None})()
    training._step([next(batches)], 0.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            training._step([next(batches)], 0.0)
            training._look_at(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(training.pending) == 1


# ---- the best, and the end -------------------------------------------------------------------------


def scripted(engine, monkeypatch, values, name):
    """Evaluations that give these values of AP, one after the other."""
    values = iter(values)
    monkeypatch.setattr(type(get_engine(engine)), "evaluate", lambda *_: {name: {"AP": next(values), "other": 0.0}})


@pytest.mark.parametrize("engine", ENGINES)
def test_the_best_weights_are_kept_and_patience_ends_a_run(engine, shapes, tmp_path, monkeypatch):
    name = f"val_{shapes.parent.name}"
    scripted(engine, monkeypatch, [float("nan"), 0.3, 0.2, 0.25, 9.0], name)
    more = {"SOLVER.MAX_ITER": 50, "SOLVER.CHECKPOINT_PERIOD": 1, "TEST.EVAL_PERIOD": 1, "SOLVER.MAX_TO_KEEP": 2,
            "TEST.BEST_METRIC": "AP", "TEST.PATIENCE": 2, "DATASETS.TEST": (name,)}  # fmt: skip
    opts = options(shapes, tmp_path, **more)
    assert run("ga_rpn", engine, opts)[name]["AP"] == 0.25
    best = content(tmp_path, "model_best")
    assert best["iteration"] == 1 and best["metrics"] == {"AP": 0.3} and "optimizer" not in best
    assert content(tmp_path)["iteration"] == 3
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "model_0000002.pth", "model_0000003.pth", "model_best.pth", "model_final.pth",
    ]  # fmt: skip
    assert run("ga_rpn", engine, opts, "--resume")[name]["AP"] == 9.0  # it is over: only evaluated
    assert content(tmp_path)["iteration"] == 3


def test_a_metric_that_does_not_exist_is_named(shapes, tmp_path, monkeypatch):
    name = f"val_{shapes.parent.name}"
    scripted("torchvision", monkeypatch, [0.1], name)
    more = {"SOLVER.MAX_ITER": 1, "TEST.BEST_METRIC": "mAP", "DATASETS.TEST": (name,)}
    with pytest.raises(SystemExit, match="ConfigError: TEST.BEST_METRIC: expected one of AP, other, got 'mAP'"):
        run("ga_rpn", "torchvision", options(shapes, tmp_path, **more))


def test_patience_needs_something_to_wait_for():
    with pytest.raises(ConfigError, match="TEST.PATIENCE: expected 0 without TEST.BEST_METRIC"):
        setup("ga_rpn", ["TEST.PATIENCE", "3"])


# ---- what a step does ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_clipping(kind):
    """Each number; each parameter's norm; the norm of all: checked against their definitions."""
    cfg = setup("ga_rpn", ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
                           "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"])  # fmt: skip
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 40)]
    gradients = [torch.randn(3) * 0.01, torch.randn(40)]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    norm = torch.cat(gradients).square().sum().sqrt()
    clip_gradients(cfg, parameters, norm)
    for parameter, gradient in zip(parameters, gradients):
        own = gradient.square().sum().sqrt()
        expected = {
            "value": gradient.clamp(-0.5, 0.5),
            "norm": gradient * min(1, 0.5 / (own + 1e-6)),
            "full_model": gradient * min(1, 0.5 / (norm + 1e-6)),
        }[kind]
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_whole_models_norm_is_clipped_in_training(engine, shapes, tmp_path, monkeypatch):
    """Of SGD without momentum or decay the step is as long as the rate times the clipped norm."""
    more = {"SOLVER.OPTIMIZER": "SGD", "SOLVER.MOMENTUM": 0.0, "SOLVER.WEIGHT_DECAY": 0.0, "SOLVER.MAX_ITER": 1,
            "SOLVER.BASE_LR": 0.01, "SOLVER.WARMUP_ITERS": 0, "SOLVER.WEIGHT_DECAY_NORM": 0.0,
            "SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.25}  # fmt: skip
    engine = get_engine(engine)
    cfg = engine.setup(config("ga_rpn"), options(shapes, tmp_path, **more))
    training = Trainer(engine, cfg, engine.training_records(cfg), None)
    before = torch.cat([value.detach().flatten().clone() for value in training.trained])
    training.train()
    moved = torch.cat([value.detach().flatten() for value in training.trained]) - before
    assert float(moved.double().norm()) == pytest.approx(0.01 * 0.25, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_average_is_its_definition(engine, shapes, tmp_path):
    """Of every weight and statistic, from the fresh weights on; its own file has nothing else."""
    more = {"MODEL_EMA.ENABLED": True, "MODEL_EMA.DECAY": 0.8, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.MAX_ITER": 3,
            "SOLVER.WARMUP_ITERS": 0}  # fmt: skip
    run("ga_rpn", engine, options(shapes, tmp_path, **more))
    seed_everything(0, WEIGHTS)
    fresh = get_engine(engine).build(setup("ga_rpn", ["MODEL.DEVICE", "cpu"]))
    expected = {key: value.detach().clone() for key, value in fresh.state_dict().items()}
    for step in ("model_0000000", "model_0000001", "model_final"):
        for key, value in content(tmp_path, step)["model"].items():
            expected[key] = 0.8 * expected[key] + 0.2 * value
    found = content(tmp_path, "model_final_ema")
    assert set(found) == {"model", "ga_scope", "iteration"} and found["iteration"] == 2
    assert any("running_var" in key for key in found["model"])
    for key, value in found["model"].items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, content(tmp_path)["model"][key]), key


def test_an_average_that_is_applied_is_taken_off_again():
    tensors = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
    average = Average(tensors, 0.5)
    tensors["a"].fill_(3.0)
    average.update()
    with average.applied():
        assert tensors["a"] == 2.0 and tensors["b"] == 2.0
    assert tensors["a"] == 3.0 and average.state_dict()["a"] == 2.0


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["SOLVER.WARMUP_ITERS", "0"],
        ["SOLVER.WARMUP_METHOD", "constant"],
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "0.00001"],
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"],
        ["SOLVER.RESCALE_INTERVAL", "True", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
        ["SOLVER.WARMUP_ITERS", "500"],
    ],
)
def test_the_learning_rate_is_detectron2s(more):
    from detectron2.solver import build_lr_scheduler

    if "SOLVER.LR_SCHEDULER_NAME" not in more:
        more = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(30, 50)", *more]
    more = ["SOLVER.MAX_ITER", "60", "SOLVER.WARMUP_ITERS", "20", *more]
    cfg = setup("ga_rpn", ["MODEL.DEVICE", "cpu", *more], "detectron2")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, ours = build_lr_scheduler(cfg, optimizer), build_lr_schedule(cfg)
    for iteration in range(60):
        assert ours(iteration / 60) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), iteration
        if iteration < 59:
            optimizer.step()
            theirs.step()


# ---- data ------------------------------------------------------------------------------------------


def test_the_order_of_images():
    """Every image once before any comes again, another order every time; batches of like shape; none is lost."""
    wide = np.array([True, False, True, True, False, False, True])
    batches = Batches(wide, 7, 2, seed=3)
    taken = list(itertools.islice(batches, 70))
    assert all(len({bool(wide[index]) for _, index in batch}) == 1 for batch in taken)
    order = [index for _, index in sorted(item for batch in taken for item in batch)]
    epochs = [tuple(order[i : i + 7]) for i in range(0, 126, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(epochs)) > 10
    assert max(Counter(position for batch in taken for position, _ in batch).values()) == 1
    assert taken == list(itertools.islice(Batches(wide, 7, 2, seed=3), 70))
    assert taken != list(itertools.islice(Batches(wide, 7, 2, seed=4), 70))


def test_every_kind_of_random_number_follows_the_seed():
    import random

    def draws():
        return random.random(), np.random.rand(), torch.rand(()).item(), torch.randperm(5).tolist()  # noqa: NPY002

    seed_everything(1, 2, 3)
    first = draws()
    seed_everything(1, 2, 4)
    other = draws()
    seed_everything(1, 2, 3)
    assert draws() == first and all(a != b for a, b in zip(first, other))
