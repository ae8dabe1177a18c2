"""The CUDA kernels, tested without a GPU: the operators' tests in a process whose library runs the same kernel
sources block by block, thread by thread, on the host (csrc/testing/simulated_grid.h)."""

import os
import subprocess
import sys

import pytest

# Tests of the CPU library itself: its threads and instruction sets, and a map too large for a simulation.
CPU_ONLY = "threads or instruction_set or capability or large_map"
# Of the oracles, those that take longer than the kernels.
CPU_ONLY += " or grid_search or size_range"


def run(stand_in, *arguments):
    # One thread: the kernels run on one, and torch's others would wait for it at full speed.
    environment = {
        **os.environ, "PYTHONPATH": str(stand_in), "GA_SCOPE_CPU_CAPABILITY": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=stand_in, env=environment, capture_output=True, text=True
    )


def test_the_stand_in_is_simulated(stand_in):
    code = "import torch, ga_scope.ops; print(ga_scope.__file__, torch.ops.ga_scope.cpu_capability())"
    result = run(stand_in, "-c", code)
    assert result.returncode == 0, result.stderr
    assert "simulated CUDA grid" in result.stdout and str(stand_in) in result.stdout


@pytest.mark.parametrize(
    "file, selected",
    [
        pytest.param("ops/test_deform_conv.py", "test", marks=pytest.mark.long),
        pytest.param("ops/test_masked_conv.py", "test", marks=pytest.mark.long),
        ("ops/test_matching.py", "test"),
        ("ops/test_nms.py", "test"),
        pytest.param("ops/test_wide_convolution.py", "test", marks=pytest.mark.long),
        pytest.param("ops/test_registration.py", "opcheck", marks=pytest.mark.long),
        ("on_grid/test_kernels.py", "test"),
    ],
)
def test_operators_on_the_simulated_grid(stand_in, file, selected):
    result = run(
        stand_in, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}", "-m", "not gpu", "-k",
        f"{selected} and not ({CPU_ONLY})",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def test_every_deletion_is_noticed(stand_in, capsys):
    """What each barrier, wait, bound and swizzle is for: on_grid/test_mutations.py deletes them in turn."""
    result = run(stand_in, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/on_grid/test_mutations.py")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    deletions = [line for line in result.stdout.splitlines() if ".h:" in line or " deletions (" in line]
    assert deletions[-1].endswith(", 0 not noticed")
    with capsys.disabled():
        print("", *deletions, sep="\n")
