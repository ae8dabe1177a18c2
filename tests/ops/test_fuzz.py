"""A sample of the fuzz test in a process of its own: a signal there would end it, not pytest."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_random_calls_give_a_right_result_or_an_error():
    """``GA_SCOPE_FUZZ_CALLS`` sets their number; tests/ops/fuzz.py runs any number."""
    calls = os.environ.get("GA_SCOPE_FUZZ_CALLS", "1500")
    result = subprocess.run(
        [sys.executable, "-m", "tests.ops.fuzz", calls, "--seed", "1"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout[-500:]}\n{result.stderr[-3000:]}"
    assert "right" in result.stdout and "refused" in result.stdout
