"""Run-time dispatch: the library runs on any processor of its architecture."""

import collections
import platform
import re
import shutil
import subprocess

import pytest

from ga_scope.ops import _library

# What a function may use, by the namespace that it is compiled in.
LEVELS = {"avx2": 1, "avx512": 2, "avx512_bf16": 3, "amx": 4}
BEYOND = (
    (4, r"%tmm|^(ldtilecfg|sttilecfg|tile|tdp)"),
    (3, r"^\S*bf16"),
    (2, r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b"),
    (1, r"^v(?!er)"),
)


def level(instruction):
    """The least set that has it; 0 is every x86-64 processor's."""
    return next((level for level, pattern in BEYOND if re.search(pattern, instruction)), 0)


def instructions():
    """Every (function, line) of the library's machine code."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", _library.LIBRARY]
    function = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.endswith(">:\n"):
                function = line[line.index("<") + 1 : -3]
            elif "\t" in line:
                yield function, line.split("\t")[1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets are chosen on x86-64 alone")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_no_function_uses_instructions_beyond_its_set():
    """An inline function compiled for AVX-512 under a shared (weak) name could be linked in for everybody."""
    seen = collections.Counter()
    for function, instruction in instructions():
        needs = level(instruction)
        seen[needs] += 1
        if needs:
            found = re.search(r"ga_scope::cpu::(avx2|avx512_bf16|avx512|amx)::", function)
            allowed = LEVELS[found.group(1)] if found else 0
            assert needs <= allowed, f"{function}: {instruction.strip()}"
    assert seen[1] > 1000 and seen[2] > 1000  # the sets are there
    assert seen[3] > 20 and seen[4] > 20  # unless the compiler is older than their instructions


def inner_loop(bodies, register):
    """Of functions as (address, instruction)s: the innermost loop with the most multiply-adds, without its jump."""
    found = []
    for body in bodies:
        number = {address: i for i, (address, _) in enumerate(body)}
        loops = []
        for i, (_, instruction) in enumerate(body):
            jump = re.match(r"j\w+\s+([0-9a-f]+)", instruction)
            if jump and number.get(jump.group(1), i + 1) <= i:
                loops.append((number[jump.group(1)], i))
        inner = [a for a in loops if not any(b != a and b[0] >= a[0] and b[1] <= a[1] for b in loops)]
        found += [[instruction for _, instruction in body[first:last]] for first, last in inner]
    return max(found, key=lambda loop: sum("fmadd" in i and register in i for i in loop))


REGISTERS = {"avx2": "%ymm", "avx512": "%zmm"}
# The kernels that most time goes to: of which set, and how many of which instruction their inner loops have. The rest
# may be scalar arithmetic on addresses and counters, a few instructions.
KERNELS = {
    "float product": (r"micro_kernel<float, 6, (\d), .*Strided", {"avx2": 2, "avx512": 4}, 6),
    "double product": (r"micro_kernel<double, 6, (\d), .*Strided", {"avx2": 2, "avx512": 4}, 6),
    "listed rows": (r"micro_kernel<float, 6, (\d), .*Listed", {"avx2": 2, "avx512": 4}, 6),
    "transposed rows": (r"micro_kernel<float, 6, (\d), .*Transposed", {"avx2": 2, "avx512": 4}, 6),
}


@pytest.fixture(scope="module")
def functions():
    """function -> [(address, instruction)] of the kernels."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", _library.LIBRARY]
    found, body = {}, None
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        start = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if start:
            body = found.setdefault(start.group(1), []) if "ga_scope::cpu::" in start.group(1) else None
            continue
        line = re.match(r"\s+([0-9a-f]+):\t(.*)", line)
        if body is not None and line:
            body.append((line.group(1), line.group(2).strip()))
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("set", ["avx2", "avx512"])
def test_inner_loops_of_products(functions, kernel, set):
    """A load per vector of B, a broadcasting load per row of A, a multiply-add for each pair: nothing else on a vector.

    An addition or a shuffle more per broadcast costs a quarter of the time.
    """
    pattern, vectors, rows = KERNELS[kernel]
    vectors = vectors[set]
    bodies = [
        body
        for name, body in functions.items()
        if (found := re.search(rf"cpu::{set}::{pattern}", name)) and int(found.group(1)) == vectors
    ]
    loop = inner_loop(bodies, REGISTERS[set])
    vector = collections.Counter(re.sub(r"\d{3}", "", i.split()[0]) for i in loop if re.search("%[xyz]mm", i))
    kind = "pd" if "double" in kernel else "ps"
    arithmetic = {k: n for k, n in vector.items() if k not in (f"vmovu{kind}", f"vmova{kind}", "vmovdqu")}
    broadcasts = {k: n for k, n in arithmetic.items() if k.startswith("vbroadcasts")}
    assert sum(broadcasts.values()) == rows, loop
    assert {k: n for k, n in arithmetic.items() if k not in broadcasts} == {f"vfmadd{kind}": rows * vectors}, loop
    assert not any("(%rsp" in i or "(%rbp" in i for i in loop if "%ymm" in i or "%zmm" in i), "a spilled register"
    assert len(loop) - sum(vector.values()) <= 8, loop


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.parametrize("name", ["gather_samples", "backward_sampled_row"])
@pytest.mark.parametrize("set", ["avx2", "avx512"])
def test_inner_loops_of_sampling(functions, name, set):
    """Four pixels, four multiply-adds (and four more for the correlations), a store; weights and sums in registers."""
    bodies = [b for n, b in functions.items() if re.search(rf"cpu::{set}::{name}<float, float>", n)]
    loop = inner_loop(bodies, REGISTERS[set])
    vector = [i for i in loop if re.search("%[yz]mm", i)]
    counted = collections.Counter(re.sub(r"\d{3}", "", i.split()[0]) for i in vector)
    products = counted["vfmaddps"] + counted["vmulps"]
    assert products == {"gather_samples": 4, "backward_sampled_row": 8}[name], loop
    assert not counted["vaddps"] and not any("rsp" in i or "rbp" in i for i in vector), loop
    assert len(loop) <= products + 12, loop
