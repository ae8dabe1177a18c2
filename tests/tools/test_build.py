"""What setup.py builds with, and the check of the CUDA kernels' registers: the decisions, not the compilers."""

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_nvcc(folder, top, version="13.0"):
    """A wrapper as nvcc on PATH often is: somewhere else than the toolkit, which its dry run names."""
    nvcc = folder / "nvcc"
    release = f"Cuda compilation tools, release {version}, V{version}.48"
    nvcc.write_text(f"#!/bin/sh\necho '#$ _SPACE_= '\necho '#$ TOP={top}' >&2\necho '{release}'\n")
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


def test_architectures_without_the_needed_instructions_are_refused():
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": "7.5;9.0+PTX"}
    result = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0 and "TORCH_CUDA_ARCH_LIST: expected 8.0 and above, got 7.5" in result.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
@pytest.mark.parametrize(
    "version, expected",
    [("12.6", "8.0;8.6;8.9;9.0+PTX"), ("12.8", "8.0;8.6;8.9;9.0+PTX;10.0;12.0"), ("13.0", None), ("12.10", None)],
)
def test_architectures_that_the_toolkit_knows(tmp_path, version, expected):
    """Those of the newest GPUs came with CUDA 12.8; older GPUs are compiled for by all."""
    (tmp_path / "bin").mkdir()
    fake_nvcc(tmp_path / "bin", tmp_path, version)
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"}
    environment |= {"GA_SCOPE_WITH_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    code = "from distutils.core import run_setup; run_setup('setup.py', ['--name'], stop_after='init')"
    code += "\nimport os; print(os.environ['TORCH_CUDA_ARCH_LIST'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == (expected or "8.0;8.6;8.9;9.0+PTX;10.0;12.0")


EXTENSION = """
import json
from distutils.core import run_setup
extension, = run_setup("setup.py", ["--name"], stop_after="init").ext_modules
names = "sources", "include_dirs", "library_dirs", "libraries"
print(json.dumps({name: getattr(extension, name) for name in names}))
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
@pytest.mark.parametrize("layout", ["NVIDIA's", "Debian's"])
def test_layouts_of_toolkits(layout, tmp_path):
    """NVIDIA's folder has everything; Debian's only nvcc: headers and libraries are where the compiler looks anyway."""
    top = tmp_path / "lib" / "nvidia-cuda-toolkit"
    (top / "bin").mkdir(parents=True)
    fake_nvcc(top / "bin", top)
    own = [top / "include", top / "lib64"] if layout == "NVIDIA's" else []
    for folder in own:
        folder.mkdir()
    fake_nvcc(tmp_path, top)  # a wrapper on PATH
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    environment |= {"GA_SCOPE_WITH_CUDA": "1", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", EXTENSION], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cuda").glob("*.cu")} <= set(found["sources"])
    named = {path for path in (*found["include_dirs"], *found["library_dirs"]) if path.startswith(str(tmp_path))}
    assert named == {str(folder) for folder in own}
    assert "cudart_static" in found["libraries"] and not {"cudart", "cublas", "torch_cuda"} & set(found["libraries"])


def test_kernels_include_little():
    """The runtime's header, torch's stable ones, C++'s: no cublas or cusparse, which many toolkits lack."""
    allowed = re.compile(r"cuda_runtime\.h|dlfcn\.h|torch/(csrc/stable|headeronly)/.*|[a-z_]+")
    found = set()
    for file in (ROOT / "csrc").rglob("*"):
        if file.suffix in (".h", ".cu") and not {"cpu", "testing"} & set(file.relative_to(ROOT).parts):
            found |= set(re.findall(r"#include <(.+)>", file.read_text()))
    assert "cuda_runtime.h" in found and all(map(allowed.fullmatch, found)), sorted(found)


def test_local_memory_is_an_error_unless_listed(monkeypatch):
    check = load_tool("check_cuda_build")
    monkeypatch.setattr(check, "ALLOWED", {"Listed": ("a reason", 16)})
    assert not check.complaint("Match<float>", stack=0, stores=0, loads=0)
    assert check.complaint("Match<float>", stack=8, stores=0, loads=0)
    assert check.complaint("Match<float>", stack=0, stores=4, loads=4)
    assert not check.complaint("ForEach<Listed>", stack=16, stores=0, loads=0)
    assert check.complaint("ForEach<Listed>", stack=24, stores=0, loads=0)
    assert check.complaint("ForEach<Listed>", stack=16, stores=4, loads=0)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_sdist_has_what_the_build_reads(sdist):
    """Every file of csrc, what setup.py imports, the operators' tests; and nothing that was built."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    tests = {str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "ops").glob("*.py")}
    assert sources | tests | {"tools/cuda_toolkit.py", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", "_build_record.json", ".pyc"))]


@pytest.mark.long
def test_wheel_of_the_sdist(sdist, tmp_path):
    """Built from the sdist alone, and imported where only torch and what it needs are beside it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"GA_SCOPE_WITH_CUDA": "0"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist]
    built = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"ga_scope-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)  # no symbol of Python's is in it
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parent.parent))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (entries,) = [archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "ga-scope = ga_scope.cli.main:main" in entries
    # The configurations lie in the repository once, and in the package.
    ours = {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")}
    assert {p.relative_to(site / "ga_scope/configs") for p in (site / "ga_scope/configs").rglob("*")} >= ours
    assert not list(site.glob("configs")) and not list(site.glob("tests"))
    assert (site / "ga_scope" / "_operators.so").stat().st_size < 2e6
    code = """
import torch, ga_scope.ops
assert ga_scope.ops.__file__.startswith(__import__("sys").prefix), ga_scope.ops.__file__
x, at = torch.randn(1, 4, 5, 6), torch.tensor([7, 3])
rows = ga_scope.ops.masked_conv2d(x, torch.ones(2, 4, 1, 1), locations=at)
torch.testing.assert_close(rows, x.sum(1).flatten()[at, None].expand(2, 2))
print(ga_scope.ops._library.build_record()["compiler"])
"""
    ran = subprocess.run(
        [venv / "bin/python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr
    code = """
import sys
from ga_scope.cli.main import main
from ga_scope.config.files import read_yaml
main(["configs", "COCO-Detection/ga_faster_rcnn_R_50_FPN_1x"])
bases, own = read_yaml("COCO-Detection/ga_faster_rcnn_R_50_FPN_1x")
main(["train", "--config", "COCO-Detection/ga_faster_rcnn_R_50_FPN_1x", "--engine", "torchvision",
      "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "run"])
"""
    ran = subprocess.run(
        [venv / "bin/python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    path = site / "ga_scope/configs/COCO-Detection/ga_faster_rcnn_R_50_FPN_1x.yaml"
    assert ran.stdout.splitlines()[0] == str(path), ran.stderr
    # All that is missing for a training is COCO.
    assert ran.returncode == 1 and ran.stderr.splitlines()[-1].startswith("DatasetError: datasets/coco/annotations/")
