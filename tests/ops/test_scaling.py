"""How much there is to do in parallel, on any number of threads: counted, not timed.

A library that is loaded first stands in for torch's parallel_for: it says that there are so many threads, notes into
how many units each parallel region can be cut, and runs it.
"""

import collections
import json
import os
import shutil
import subprocess
import sys

import pytest

COUNTER = """
#include <stdint.h>

int64_t threads = 1, regions = 0, units[1 << 16];

int torch_get_num_threads(uint32_t* count) {
  *count = threads;
  return 0;
}

int torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*work)(int64_t, int64_t, void*), void* with) {
  if (regions < 1 << 16) units[regions++] = (end - begin + grain - 1) / grain;
  work(begin, end, with);
  return 0;
}
"""

CALLS = """
import ctypes, hashlib, json, os, torch
from ga_scope.ops import deform_conv2d

counter = ctypes.CDLL(os.environ["LD_PRELOAD"])
regions, threads = (ctypes.c_int64.in_dll(counter, name) for name in ("regions", "threads"))
units = (ctypes.c_int64 * (1 << 16)).in_dll(counter, "units")
torch.manual_seed(0)
x, weight, offset = torch.randn(1, 256, 72, 120), torch.randn(256, 256, 3, 3) / 48, torch.randn(1, 72, 72, 120)


def take():
    found = [units[i] for i in range(regions.value)]
    regions.value = 0
    return found


for layout in (torch.contiguous_format, torch.channels_last):
    for threads.value in (2, 16, 64):
        leaves = [t.detach().requires_grad_() for t in (x.contiguous(memory_format=layout), offset, weight)]
        out = deform_conv2d(*leaves, padding=1)
        forward = take()
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        numbers = b"".join(t.detach().contiguous().numpy().tobytes() for t in (out, *grads))
        digest = hashlib.sha256(numbers).hexdigest()
        print(json.dumps([str(layout), threads.value, forward, take(), digest]))
"""


def test_every_thread_has_work_between_two_barriers(tmp_path):
    """72 x 120, 256 channels, 4 offset groups. Fewer regions on more threads, and in each a unit for every thread."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the counter with")
    (tmp_path / "counter.c").write_text(COUNTER)
    counter = tmp_path / "counter.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", counter, tmp_path / "counter.c"], check=True)
    result = subprocess.run(
        [sys.executable, "-c", CALLS], env={**os.environ, "LD_PRELOAD": str(counter)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    counted, digests = {}, {}
    for layout, threads, forward, backward, digest in map(json.loads, result.stdout.splitlines()):
        digests.setdefault(layout, set()).add(digest)
        counted.setdefault(layout, {})[threads] = len(backward)
        # Forward's first region packs the weight, a vector of output channels a unit: what there is, and soon done.
        for name, units in (("forward", forward[1:]), ("backward", backward)):
            small = [n for n in units if n < threads]
            assert not small, f"{layout}, {name} on {threads} threads: {collections.Counter(units)}"
    for layout, regions in counted.items():
        assert len(digests[layout]) == 1  # the same numbers on any number of threads
        # Three per super-tile of the rows, which grows with the threads, and a few for packing and transposition.
        assert regions[2] > 100 > 25 > regions[16] > regions[64], regions
