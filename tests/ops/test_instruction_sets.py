"""Run-time dispatch: the library runs on any processor of its architecture."""

import platform
import re
import shutil
import subprocess

import pytest

from ga_scope.ops import _library

LEVELS = {"avx2": 1, "avx512": 2}  # what a function may use, by the namespace that it is compiled in


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
    vector = {0: 0, 1: 0, 2: 0}
    for function, instruction in instructions():
        mnemonic = instruction.split(maxsplit=1)[0]
        needs = 2 if re.search(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b", instruction) else 0
        if not needs and mnemonic.startswith("v") and not mnemonic.startswith("ver"):
            needs = 1
        if not needs:
            continue
        vector[needs] += 1
        found = re.search(r"ga_scope::cpu::(avx2|avx512)::", function)
        allowed = LEVELS[found.group(1)] if found else 0
        assert needs <= allowed, f"{function}: {instruction.strip()}"
    assert vector[1] > 1000 and vector[2] > 1000  # the sets are there
