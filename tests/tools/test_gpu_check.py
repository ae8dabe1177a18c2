"""tools/gpu_check.sh with a stand-in for the interpreter of a machine with a GPU: its bookkeeping, not its steps."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")

# Says what a GPU's torch would, passes, but fails the first tests; the benchmark is slow and has written a row.
INTERPRETER = """#!/bin/bash
case "$*" in
  *get_device_name*) echo "Stand In 9000" ;;
  *get_device_capability*) echo 9.0 ;;
  *platform.python_version*) echo "python 3 torch 2" ;;
  "-m zipfile"*) exec python3 "$@" ;;
  *tests/ops/test_gpu.py\\ tests/modeling*) echo "1 failed, 41 passed"; exit 3 ;;
  *gpu_operators.py*) echo "a row 12.3" >"${@: -1}"; sleep "${SLOW:-0}" ;;
  *) echo "ran: $* ($TORCH_CUDA_ARCH_LIST)" ;;
esac
"""
SANITIZER = """#!/bin/bash
while [[ $1 == --* ]]; do shift 2; done
exec "$@"
"""


def script(*arguments, **environment):
    command = ["bash", ROOT / "tools/gpu_check.sh", *map(str, arguments)]
    path = f"{environment.pop('folder', '/nowhere')}:/usr/bin:/bin"
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": path, **environment})


@pytest.fixture
def machine(tmp_path):
    """A folder with programs of the stand-in machine."""
    for name, text in (("python", INTERPRETER), ("compute-sanitizer", SANITIZER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def steps(summary):
    """Name and verdict of every step, in order."""
    lines = [line for line in summary.splitlines() if line.startswith("== ")]
    return {line[3:].split(":")[0]: line.split(": ")[1].split(",")[0] for line in lines}


def test_dry_run_is_complete():
    """Every file that it needs is there; no GPU is asked for."""
    result = script("--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names[:3] == ["build", "gpu_tests", "benchmark"] and "train_scopenet" in names
    assert "dry run: 0 files missing" in result.stdout


def test_without_a_gpu_it_says_so():
    result = script("--python", "/bin/false")
    assert result.returncode == 1 and "sees no CUDA device" in result.stderr


def test_a_failing_step_stops_nothing(machine):
    result = script("--python", machine / "python", "--output", machine / "out", "--commit", "abc", folder=machine)
    summary = (machine / "out" / "summary.txt").read_text()
    assert result.returncode == 1, result.stdout + result.stderr
    for text in ("card: Stand In 9000", "commit: abc", "date: 20", "1 failed, 41 passed", "a row 12.3"):
        assert text in summary
    assert "a row 12.3" in result.stdout
    found = steps(summary)
    assert found.pop("gpu_tests") == "FAILED (status 3)"
    assert set(found.values()) == {"passed"}
    for name in ("build", "benchmark", "memcheck", "operators", "train_ga_faster_rcnn", "racecheck", "initcheck"):
        assert name in found
    assert "1 steps failed" in summary
    assert "(9.0)" in (machine / "out" / "build.txt").read_text()


def test_the_time_is_kept(machine):
    """A slow step is stopped at what is left, its rows are kept, and what follows is named as left out."""
    result = script(
        "--python", machine / "python", "--output", machine / "out", "--seconds", 12, folder=machine, SLOW="60"
    )  # fmt: skip
    summary = (machine / "out" / "summary.txt").read_text()
    assert result.returncode == 1
    assert steps(summary)["benchmark"].startswith("FAILED (stopped after 1")
    assert "a row 12.3" in summary
    assert "LEFT OUT: operators: 12 s are used up" in summary


def test_one_step_with_carried_wheels(machine):
    (machine / "wheels").mkdir()
    with zipfile.ZipFile(machine / "wheels" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
    arguments = ["--python", machine / "python", "--output", machine / "out", "--only", "memcheck", "--prebuilt"]
    unpacked = ROOT / "build" / "gpu_packages"
    result = script(*arguments, "--wheels", machine / "wheels", folder=machine)
    found = (unpacked / "carried.py").exists()
    shutil.rmtree(unpacked, ignore_errors=True)
    assert found and result.returncode == 0, result.stdout + result.stderr
    assert steps((machine / "out" / "summary.txt").read_text()) == {"memcheck": "passed"}
