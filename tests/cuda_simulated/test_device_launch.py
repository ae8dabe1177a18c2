"""The host's side of a launch (csrc/cuda/device_launch.h), on a stub of the CUDA runtime that records every call."""

import os
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).resolve().parent / "stub"
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    compiler = os.environ.get("CXX", "c++")
    includes = [f"-I{path}" for path in (STUB, ROOT / "csrc", *include_paths("cpu"))]
    flags = ["-std=c++20", "-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    torch = [flag for path in library_paths("cpu") for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    libraries = [f"-Wl,-rpath,{folder}", *torch, "-ltorch_cpu", "-lc10", "-ldl"]  # the stub before torch's own
    library = [compiler, "-shared", "-fPIC", STUB / "torch_cuda.cpp", "-o", folder / "libtorch_cuda.so"]
    main = [compiler, *flags, *includes, STUB / "launch.cpp", "-o", folder / "launch", *libraries]
    for command in (library, main):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "launch"


def run(program, *arguments):
    """The lines of a scenario, without those of the device's set-up if it went well."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SET_UP = [
    "guard 3",
    "cudaSetDevice 3",  # of the runtime that is linked into the library
    "cudaDeviceGetAttribute 0 3",
    "cudaDeviceGetAttribute 1 3",
    "cudaDeviceGetAttribute 2 3",
    f"processors 132 shared {227 << 10} tensor cores 1",
]


def launched(program, *arguments):
    lines = run(program, *arguments)
    assert lines[: len(SET_UP)] == SET_UP
    assert lines[-1] == "guard ends" or lines[-1].startswith("error: ")
    return lines[len(SET_UP) :]


def test_a_launch(program):
    """On the tensor's device and torch's current stream there, with the kernel's own bytes as its argument."""
    assert launched(program, "plain") == ["cudaLaunchKernel 1 7 1 1 96 1 1 0 0x1003", "argument 42", "guard ends"]


def test_shared_memory(program):
    """A kernel's struct says how much, or it does itself; above 48 KiB it is asked for first."""
    assert launched(program, "fixed")[0] == "cudaLaunchKernel 1 1 1 1 96 1 1 200 0x1003"
    assert launched(program, "chosen")[:3] == [
        "cudaFuncSetAttribute 1 100000",
        "cudaLaunchKernel 1 2 1 1 96 1 1 100000 0x1003",
        f"cudaLaunchKernel 1 2 1 1 96 1 1 {48 << 10} 0x1003",
    ]


def test_numbers_of_blocks(program):
    assert launched(program, "none") == ["guard ends"]
    assert launched(program, "most")[0] == f"cudaLaunchKernel 1 {2**31 - 1} 1 1 96 1 1 0 0x1003"
    assert launched(program, "too many") == ["guard ends", "error: a kernel: more than 2^31 blocks"]


@pytest.mark.parametrize("call", ["cudaFuncSetAttribute", "cudaLaunchKernel"])
def test_a_failing_launch_names_its_kernel(program, call):
    """And the error is taken from the runtime, or the next launch would report it as its own."""
    lines = launched(program, "chosen", call)
    assert lines[-3:] == ["cudaGetLastError", "guard ends", "error: a kernel: a made error"]
    assert len([line for line in lines if line.startswith(call)]) == 1


@pytest.mark.parametrize("call", ["cudaSetDevice", "cudaDeviceGetAttribute"])
def test_a_failing_set_up(program, call):
    lines = run(program, "plain", call)
    assert lines[-3:] == ["cudaGetLastError", "guard ends", f"error: {call}: a made error"]
    assert not any("Launch" in line for line in lines)


def test_torchs_library_is_asked_for_the_stream(program):
    error = "error: ga_scope: no aoti_torch_get_current_cuda_stream in libtorch_cuda.so"
    assert run(program, "plain", "library")[-1] == error
    assert run(program, "plain", "stream")[-1] == "error: ga_scope: cannot get torch's current CUDA stream"


def test_tensor_cores_from_ampere_on(program):
    assert any("tensor cores 0" in line for line in run(program, "none", "", "7"))
    assert any("tensor cores 1" in line for line in run(program, "none", "", "8"))
