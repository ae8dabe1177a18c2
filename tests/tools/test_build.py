"""What setup.py builds with, and the check of the CUDA kernels' registers: the decisions, not the compilers."""

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_nvcc(folder, top):
    """A wrapper as nvcc on PATH often is: somewhere else than the toolkit, which its dry run names."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '#$ _SPACE_= '\necho '#$ TOP={top}' >&2\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return nvcc


def test_toolkit_behind_a_wrapper(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    find = load_tool("cuda_toolkit").find_cuda_toolkit
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find() is None
    top = tmp_path / "toolkit"
    top.mkdir()
    fake_nvcc(tmp_path, f"{top}/bin/..")
    (top / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find() == top
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    fake_nvcc(home / "bin", "elsewhere")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert find() == home


@pytest.mark.parametrize(
    "wish, message",
    [
        ("yes", "GA_SCOPE_WITH_CUDA: expected auto, 0 or 1, got 'yes'"),
        ("1", "GA_SCOPE_WITH_CUDA=1, but no CUDA toolkit: put nvcc on PATH"),
    ],
)
def test_setup_says_what_is_wrong(tmp_path, wish, message):
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    environment |= {"GA_SCOPE_WITH_CUDA": wish, "PATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0 and message in result.stderr


def test_local_memory_is_an_error_unless_listed():
    check = load_tool("check_cuda_build")
    (listed, (_, most)), *_ = check.ALLOWED.items()
    assert not check.complaint("Match<float>", stack=0, stores=0, loads=0)
    assert check.complaint("Match<float>", stack=8, stores=0, loads=0)
    assert check.complaint("Match<float>", stack=0, stores=4, loads=4)
    assert not check.complaint(f"ForEach<{listed}>", stack=most, stores=0, loads=0)
    assert check.complaint(f"ForEach<{listed}>", stack=most + 8, stores=0, loads=0)
    assert check.complaint(f"ForEach<{listed}>", stack=most, stores=4, loads=0)
