"""Builds the library of simulated kernels once, and a stand-in ga_scope around it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "simulated"

collect_ignore = ["on_grid"]  # run by test_simulated_grid.py, in the stand-in


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A directory with a package ga_scope whose operators run the CUDA kernels on a simulated grid, and tests."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout: csrc and setup.py are needed")
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", BUILD, "--build-temp", BUILD / "temp"],
        cwd=ROOT, env={**os.environ, "GA_SCOPE_SIMULATED_GRID": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    home = tmp_path_factory.mktemp("stand_in")
    (home / "tests").mkdir()
    ignore = shutil.ignore_patterns("*.so", "_build_record.json", "__pycache__")
    shutil.copytree(ROOT / "ga_scope", home / "ga_scope", ignore=ignore)
    shutil.copytree(BUILD / "ga_scope", home / "ga_scope", dirs_exist_ok=True)
    for name in ("__init__.py", "conftest.py", "ops"):
        source = ROOT / "tests" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, home / "tests" / name)
    shutil.copytree(ROOT / "tests/cuda_simulated/on_grid", home / "tests" / "on_grid")
    shutil.copytree(ROOT / "csrc/cuda", home / "csrc" / "cuda")
    shutil.copy(ROOT / "pyproject.toml", home)
    return home
