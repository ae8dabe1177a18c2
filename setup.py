"""Builds the operators of ``csrc/`` into one library inside the package.

The library uses LibTorch's stable ABI: built with one torch, it runs with every torch from
``TORCH_TARGET`` on, and, CUDA kernels included, on machines and torch builds without CUDA.

The CPU kernels are always built. ``GA_SCOPE_WITH_CUDA`` decides on the CUDA kernels:

``auto``  (default) built when there are a CUDA toolkit, a torch built with CUDA, and a reason to: a visible
          GPU, for whose architecture alone they are then compiled, or ``TORCH_CUDA_ARCH_LIST``. A machine without
          a GPU does not wait minutes for kernels that it cannot run. GPUs below compute capability 8.0 (Ampere) have
          none.
``1``     built for ``TORCH_CUDA_ARCH_LIST``, by default ``default_architectures``; an error if impossible.
``0``     not built.

``TORCH_CUDA_ARCH_LIST`` chooses the architectures, as for any torch extension ("9.0" or "8.0;9.0+PTX").

``GA_SCOPE_SIMULATED_GRID=1`` builds something else, for tests: a library that runs the CUDA kernels on CPU tensors,
on the simulated grid of ``csrc/testing``.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
from cuda_toolkit import find_cuda_toolkit, toolkit_version  # noqa: E402

TORCH_TARGET = "2.10"
TORCH_TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"
LEAST_CUDA_CAPABILITY = (8, 0)  # cp.async, and tensor cores for bfloat16 and tf32


def default_architectures(toolkit):
    """Those that a toolkit knows of 8.0 to 12.0; later GPUs compile the PTX."""
    known = tuple(int(part) for part in toolkit_version(toolkit).split("."))
    return "8.0;8.6;8.9;9.0+PTX" + (";10.0;12.0" if known >= (12, 8) else "")


def choose_cuda():
    """The toolkit to build the CUDA kernels with and the architectures, or None twice for a CPU library."""
    wish = os.environ.get("GA_SCOPE_WITH_CUDA", "auto").lower()
    if wish not in ("auto", "0", "1"):
        sys.exit(f"GA_SCOPE_WITH_CUDA: expected auto, 0 or 1, got {wish!r}")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wish == "auto" and not architectures and torch.cuda.is_available():
        devices = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        usable = sorted(device for device in devices if device >= LEAST_CUDA_CAPABILITY)
        if not usable:
            print(f"ga_scope: no CUDA kernels for GPUs of compute capability {sorted(devices)}: below 8.0")
        architectures = ";".join(f"{major}.{minor}" for major, minor in usable)
    too_old = [name for name in re.split("[; ]+", architectures or "") if re.match(r"[1-7]\.", name)]
    if too_old and wish != "0":
        sys.exit(f"TORCH_CUDA_ARCH_LIST: expected 8.0 and above, got {', '.join(too_old)}")
    if wish == "0" or (wish == "auto" and not architectures):
        return None, None
    toolkit = find_cuda_toolkit()
    problem = None
    if toolkit is None:
        problem = "no CUDA toolkit: put nvcc on PATH, or type CUDA_HOME=/usr/local/cuda before the command"
    elif torch.version.cuda is None:
        problem = f"torch {torch.__version__} was built without CUDA: install a CUDA build of torch first"
    if problem and wish == "1":
        sys.exit(f"GA_SCOPE_WITH_CUDA=1, but {problem}")
    return (None, None) if problem else (toolkit, architectures or default_architectures(toolkit))


SIMULATED_GRID = os.environ.get("GA_SCOPE_SIMULATED_GRID") == "1"
CUDA_TOOLKIT, CUDA_ARCH_LIST = (None, None) if SIMULATED_GRID else choose_cuda()
if CUDA_TOOLKIT:
    os.environ["CUDA_HOME"] = str(CUDA_TOOLKIT)  # before torch guesses one
    os.environ["TORCH_CUDA_ARCH_LIST"] = CUDA_ARCH_LIST

from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths  # noqa: E402


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def operators_extension():
    """The library: CPU kernels, and CUDA kernels if chosen; or simulated ones instead of both."""
    # -g0: Python's own flags ask for debugging information, ten times the code. Type CFLAGS=-g for it.
    # c++2a is what compilers called C++20 before it was out.
    cxx = ["-O3", "-g0", "-std=c++2a", "-fvisibility=hidden", "-ffp-contract=fast", TORCH_TARGET_FLAG]
    cxx += shlex.split(os.environ.get("CFLAGS", ""))
    # -lineinfo: sanitizers and profilers name the source line.
    nvcc = ["-O3", "-std=c++20", "-lineinfo", "-Xcompiler", "-fvisibility=hidden", TORCH_TARGET_FLAG]
    if SIMULATED_GRID:
        cxx += ["-U_FORTIFY_SOURCE"]  # its longjmp refuses to change stacks
    files = sources("csrc/*.cpp", "csrc/testing/*.cpp" if SIMULATED_GRID else "csrc/cpu/*.cpp")
    includes, directories = include_paths("cpu"), library_paths("cpu")
    # Only what every torch build has: the same library then loads with and without CUDA. The CUDA runtime is
    # therefore linked statically, and the current stream is asked for at run time (csrc/cuda/device_grid.h).
    libraries = ["c10", "torch", "torch_cpu"]
    if CUDA_TOOLKIT:
        files += sources("csrc/cuda/*.cu")
        includes += [str(path) for path in [CUDA_TOOLKIT / "include"] if path.is_dir()]
        directories += [str(path) for path in (CUDA_TOOLKIT / "lib64", CUDA_TOOLKIT / "lib") if path.is_dir()]
        libraries += ["cudart_static", "dl", "rt", "pthread"]
    return Extension(
        "ga_scope._operators",
        files,
        include_dirs=includes,
        library_dirs=directories,
        libraries=libraries,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        language="c++",
    )


class Build(BuildExtension.with_options(no_python_abi_suffix=True)):
    """Builds a library that knows nothing of Python, and leaves a record of what was built beside it."""

    def run(self):
        package = ROOT / "ga_scope" if self.inplace else Path(self.build_lib) / "ga_scope"
        for stale in package.glob("_operators*.so"):  # of another name: there may be only one
            if stale.name != "_operators.so":
                stale.unlink()
        super().run()
        version = re.search(r'__version__ = "(.+)"', (ROOT / "ga_scope/__init__.py").read_text()).group(1)
        record = {
            "ga_scope": version,
            "torch": torch.__version__,
            "torch_target": TORCH_TARGET,
            "cuda": toolkit_version(CUDA_TOOLKIT) if CUDA_TOOLKIT else None,
            "cuda_arch_list": CUDA_ARCH_LIST,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "compiler": subprocess.run(
                [os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True
            ).stdout.splitlines()[0],
        }
        (package / "_build_record.json").write_text(json.dumps(record, indent=2) + "\n")


class Wheel(bdist_wheel):
    """Of a platform, for every Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


# The configurations lie in one place, configs/ of the repository, and are a folder of the package once it is installed.
setup(
    packages=[*find_packages(include=["ga_scope*"]), "ga_scope.configs"],
    package_dir={"ga_scope.configs": "configs"},
    package_data={"ga_scope": ["*.so", "_build_record.json"], "ga_scope.configs": ["**/*.yaml"]},
    ext_modules=[operators_extension()],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
