"""The operators' benchmarks run: on maps of a twelfth, a call or three of each variant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="not a source checkout")

# What a table of each must hold.
OPERATORS = {
    "deform_conv2d": {"ga_scope", "ga_scope, channels_last", "torchvision", "conv2d", "bfloat16", "conv2d bfloat16"},
    "masked_conv2d": {"ga_scope", "conv2d", "gather + matmul, channels_last", "batch 8"},
    "feature_adaption": {"ga_scope at 10 %", "torchvision everywhere"},
    "viou_match": {"exact, min_iou 0.3", "matrix in torch", "batch 8"},
    "iou_match": {"ga_scope", "matrix in torch"},
    "location_targets": {"ga_scope", "loop in torch"},
    "nms_mask": {"ga_scope", "torchvision"},
}


def benchmark(*arguments):
    environment = {**os.environ, "GA_SCOPE_BENCHMARK_TINY": "1"}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_benchmark_runs(name, tmp_path):
    pytest.importorskip("torchvision")
    from benchmarks import harness

    rows = tmp_path / "rows.csv"
    result = benchmark(f"benchmarks.{name}", "--csv", rows, "--budget", "0.001")
    assert result.returncode == 0, result.stderr[-3000:]
    found = harness.read_csv(rows)
    assert OPERATORS[name] <= {row["variant"] for row in found}
    assert all(row["benchmark"] == name and row["ms"] > 0 for row in found)
    first, *_ = result.stdout.splitlines()
    assert "kernels " in first and " threads; ga_scope " in first


def test_every_benchmark_is_listed():
    from benchmarks.__main__ import NAMES

    helpers = {"__init__", "__main__", "acceptance", "gpu_operators", "harness", "heads"}
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - helpers == set(NAMES)


def test_bars_of_missing_rows_are_not_measured(tmp_path):
    (tmp_path / "rows.csv").write_text("benchmark,case,variant,ms\n")
    result = benchmark("benchmarks.acceptance", tmp_path / "rows.csv")
    assert result.returncode == 0 and "not measured" in result.stdout and "0 missed" in result.stdout
