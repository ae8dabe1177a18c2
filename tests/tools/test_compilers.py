"""csrc/cpu by the compilers that are here, and for other processors by cross compilers."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="not a source checkout")
INCLUDES = [f"-I{Path(torch.__file__).parent / 'include'}", f"-I{ROOT / 'csrc'}"]
FLAGS = ["-std=c++2a", "-ffp-contract=fast", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
COMPILERS = ("g++", "g++-9", "g++-10", "g++-11", "clang++")
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"


def here(*names):
    """Skips with the names of programs that are not installed."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def compile_products(compiler, folder, *flags):
    program = folder / "products"
    command = [compiler, "-O2", *FLAGS, *INCLUDES, *flags, Path(__file__).parent / "products.cpp", "-o", program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return program


def processor_has(*names):
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(names) <= set(re.findall(r"\w+", cpuinfo.read_text()))


@pytest.mark.parametrize("compiler", [pytest.param(name, marks=here(name)) for name in COMPILERS])
def test_products_by_every_compiler(compiler, tmp_path):
    flags, width = [], 16
    if platform.machine() == "x86_64" and processor_has("avx2", "fma", "f16c"):
        flags, width = ["-mavx2", "-mfma", "-mf16c"], 32
    program = compile_products(compiler, tmp_path, *flags, f"-DGA_VECTOR_BYTES={width}", "-DGA_BFLOAT16_PRODUCT=0")
    assert subprocess.run([program], capture_output=True, text=True).stdout == "right\n"


AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-DGA_VECTOR_BYTES=64"]


@here("g++")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize("product", [0, 1], ids=["avx512", "avx512_bf16"])
def test_products_of_wider_sets(product, tmp_path):
    """Compiled always; run where the processor can."""
    flags = [*AVX512, *(["-mavx512bf16"] if product else [])]
    program = compile_products("g++", tmp_path, *flags, f"-DGA_BFLOAT16_PRODUCT={product}")
    if processor_has("avx512f", "avx512bw", "avx512dq", "avx512vl", *(["avx512_bf16"] if product else [])):
        assert subprocess.run([program], capture_output=True, text=True).stdout == "right\n"


@pytest.mark.parametrize("compiler", [pytest.param(name, marks=here(name)) for name in ("g++", "clang++")])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.skipif(
    processor_has("amx_tile"), reason="a processor with AMX needs no emulation: the operators' tests run"
)
@pytest.mark.skipif(not processor_has("avx2", "fma", "f16c"), reason="the processor lacks AVX2")
def test_products_of_amx(compiler, tmp_path):
    """The machine code with AMX's instructions, which a signal handler carries out."""
    flags = ["-mavx2", "-mfma", "-mf16c", "-mamx-tile", "-mamx-bf16", "-DGA_VECTOR_BYTES=32"]
    program = compile_products(compiler, tmp_path, *flags, "-DGA_BFLOAT16_PRODUCT=2", "-DGA_EMULATE_AMX")
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.stdout == "right\n", (result.returncode, result.stdout)


@here(CROSS)
def test_aarch64_compiles_and_uses_its_registers(tmp_path):
    """32 vector registers: 24 hold sums. With qemu-user the products run, too."""
    program = compile_products(CROSS, tmp_path, "-static", "-DGA_VECTOR_BYTES=16", "-DGA_BFLOAT16_PRODUCT=0")
    command = [CROSS.replace("g++", "objdump"), "--disassemble", "--demangle", "--no-show-raw-insn", program]
    body = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernel = re.search(r"<[^\n]*micro_kernel<float, 6, 4[^\n]*Strided[^\n]*>:\n(.*?)\n\n", body, re.S).group(1)
    sums = set(re.findall(r"\tfmla\s+(v\d+)\.4s", kernel))
    assert len(sums) >= 24, sorted(sums)
    if shutil.which(QEMU):
        assert subprocess.run([QEMU, program], capture_output=True, text=True).stdout == "right\n"


@here(CROSS)
@pytest.mark.parametrize("source", sorted(p.name for p in (ROOT / "csrc" / "cpu").glob("*.cpp")))
def test_every_source_compiles_for_aarch64(source):
    command = [CROSS, "-fsyntax-only", *FLAGS, *INCLUDES, ROOT / "csrc" / "cpu" / source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
