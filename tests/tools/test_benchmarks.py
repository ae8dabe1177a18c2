"""Every benchmark runs: on maps of a twelfth, a call or two of each variant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="not a source checkout")

# What a table of each must hold.
BENCHMARKS = {
    "deform_conv2d": {"ga_scope", "ga_scope, channels_last", "torchvision", "conv2d", "bfloat16", "conv2d bfloat16"},
    "masked_conv2d": {"ga_scope", "conv2d", "gather + matmul, channels_last", "batch 8"},
    "feature_adaption": {"ga_scope at 10 %", "torchvision everywhere"},
    "viou_match": {"exact, min_iou 0.3", "matrix in torch", "batch 8"},
    "iou_match": {"ga_scope", "matrix in torch"},
    "location_targets": {"ga_scope", "loop in torch"},
    "nms_mask": {"ga_scope", "torchvision"},
    "ga_head": {"GA-RPN", "GA-RPN without conv, channels_last", "torchvision RPN", "GA-RPN, batch 8"},
    "training_step": {"GA-RPN", "GA-RPN without conv", "torchvision RPN"},
    "inference": {
        *("GA-Faster R-CNN", "GA-Faster R-CNN, optimized", "GA-Faster R-CNN, optimized, bfloat16", "Faster R-CNN"),
        *("torchvision Faster R-CNN", "torchvision Faster R-CNN, ONNX Runtime"),
        *("ScopeNet", "ScopeNet, optimized", "torchvision FCOS", "torchvision FCOS, ONNX Runtime"),
    },
}


def python(*arguments):
    environment = {**os.environ, "GA_SCOPE_BENCHMARK_TINY": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


# All in one process: most of what one alone would take is to start.
EVERY = """
import contextlib, pathlib, runpy, sys, traceback
folder = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
    sys.argv = [name, "--csv", str(folder / f"{name}.csv"), "--budget", "0.001"]
    with open(folder / f"{name}.txt", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except Exception:
            traceback.print_exc()
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """What every benchmark wrote: rows and log."""
    pytest.importorskip("torchvision")
    folder = tmp_path_factory.mktemp("benchmarks")
    result = python("-c", EVERY, folder, *BENCHMARKS)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs(name, tables):
    from benchmarks import harness

    log = (tables / f"{name}.txt").read_text()
    assert (tables / f"{name}.csv").exists(), log[-3000:]
    found = harness.read_csv(tables / f"{name}.csv")
    assert BENCHMARKS[name] <= {row["variant"] for row in found}
    assert all(row["benchmark"] == name and row["ms"] > 0 for row in found)
    first, *_ = log.splitlines()
    assert "kernels " in first and " threads; ga_scope " in first


def test_every_benchmark_is_listed():
    from benchmarks.__main__ import NAMES

    helpers = {"__init__", "__main__", "acceptance", "gpu_operators", "harness", "heads", "runtimes"}
    helpers |= {"exported", "sparse_tower"}  # of a model that somebody trained
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - helpers == set(NAMES) == set(BENCHMARKS)


GPU_OPERATORS = """
import sys
import torch
from benchmarks import gpu_operators as table

def measured(functions, runs=30, warm=5):
    functions[0]()
    return 3.0, 2.0, 4.0

table.DEVICE, table.median_us, table.extra_mb = "cpu", measured, lambda function: function() and 1.0
table.Replay = lambda function, *inputs: function
torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda: "none"
sys.argv += ["--output", sys.argv.pop()]
table.main()
"""


def test_gpu_benchmark_calls_what_is_there(tmp_path):
    """Each of its functions once, on the CPU in place of a GPU."""
    pytest.importorskip("torchvision")
    result = python("-c", GPU_OPERATORS, tmp_path / "table.txt")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = (tmp_path / "table.txt").read_text()
    for what in ("viou_match", "nms_mask", "GA-RPN + proposals", "graph", "deform conv", "masked deform", "backward"):
        assert what in rows
    bars = rows.split("\n\n")[-1].splitlines()[1:]
    assert len(bars) > 15 and "not measured" not in "".join(bars), bars
    assert "deform conv, five levels, batch 16, tf32" in rows and "deform conv, five levels, batch 1, bf16" in rows


def test_bars_of_a_gpu():
    from benchmarks.gpu_operators import BARS, Table

    table = Table("a card", None)
    for value in (90.0, 110.0, 95.0):  # the worst counts
        table.figure("viou_match, G = 100", value)
    table.figure("viou_match, G = 3000", 2000.0)
    for value in (3.0, 1.9, 2.5):
        table.figure("dense, batch 16, fp32, torchvision / ours", value)
    table.figure("dense, batch 1, fp32, torchvision / ours", 2.0)
    verdicts = dict(zip(BARS, (line.split()[-1] for line in table.bars()[1:]), strict=True))
    assert verdicts.pop("viou_match, G = 100") == verdicts.pop("dense, batch 16, fp32, torchvision / ours") == "MISSED"
    assert verdicts.pop("viou_match, G = 3000") == verdicts.pop("dense, batch 1, fp32, torchvision / ours") == "met"
    assert set(verdicts.values()) == {"measured"}  # not
    with pytest.raises(KeyError):
        table.figure("what no bar is about", 1.0)


def test_bars_of_missing_rows_are_not_measured(tmp_path):
    (tmp_path / "rows.csv").write_text("benchmark,case,variant,ms\n")
    result = python("-m", "benchmarks.acceptance", tmp_path / "rows.csv")
    assert result.returncode == 0 and "not measured" in result.stdout and "0 missed" in result.stdout


def test_detections_are_compared_with_their_like():
    """Whatever their order; another class is another detection, and proposals have no class."""
    import torch

    from benchmarks.exported import difference

    boxes, scores = torch.tensor([[[0.0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]]), torch.tensor([[0.9, 0.8, 0.0]])
    classes, count = torch.tensor([[1, 2, 0]]), torch.tensor([2])
    expected = [boxes, scores, classes, count]
    order = torch.tensor([1, 0, 2])
    found = [boxes[:, order] + 0.03, scores[:, order] - 5e-5, classes[:, order], count]
    assert difference(found, expected) == (pytest.approx(0.03, abs=1e-5), pytest.approx(5e-5, abs=1e-6), 0)
    assert difference([boxes, scores, torch.tensor([[1, 3, 0]]), count], expected) == (0, 0, 1)
    assert difference([boxes + 1, scores, classes, count], expected)[2] == 2
    assert difference([boxes, scores, classes, count - 1], expected)[2] == 1
    assert difference([boxes + 1, scores, count], [boxes, scores, count])[2] == 2
