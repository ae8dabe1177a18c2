"""tools/sass.py counts what it says, on small made-up programs; tools/cuda_budget.py fails on an exceeded budget."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")
sys.path.insert(0, str(ROOT / "tools"))


def program(text):
    """Instructions of lines "label: @P0 OPCODE operands", branches to labels."""
    import sass

    lines = [line.split(";")[0].strip() for line in text.strip().splitlines()]
    at = {line.split(":")[0]: i for i, line in enumerate(lines) if ":" in line}
    found = []
    for line in lines:
        words = line.split(":")[-1].split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        operands = ",".join(hex(16 * at[w]) if w in at else w for w in words[1:])
        found.append(sass.Instruction(words[0], operands, predicate))
    return sass.ControlFlow(found)


def test_the_longer_side_of_a_branch():
    flow = program("""
        @P0 BRA b
        FADD
        FADD
        BRA c
        b: FMUL
        c: STG.E.128
        EXIT
    """)
    assert flow.paths()[0].opcodes == Counter({"BRA": 2, "FADD": 2, "STG.E.128": 1, "EXIT": 1})


def test_a_reconverging_branch():
    """BSYNC goes where its BSSY says, wherever it stands."""
    flow = program("""
        BSSY B0 out
        @P0 BRA b
        FADD
        BSYNC B0
        b: FMUL
        FMUL
        BSYNC B0
        NOP
        out: EXIT
    """)
    assert flow.paths()[0].opcodes == Counter({"BSSY": 1, "BRA": 1, "FMUL": 2, "BSYNC": 1, "EXIT": 1})


def test_loops_make_the_stores_asked_for():
    """Four at a time, the remainder one by one: 8 stores are two turns of the first loop and none of the second."""
    flow = program("""
        MOV
        a: LDG.E
        STG.E
        STG.E
        STG.E
        STG.E
        @P0 BRA a
        b: LDG.E
        IADD3
        STG.E
        @P0 BRA b
        EXIT
    """)
    assert sorted((loop.depth, len(loop.opcodes)) for loop in flow.loops) == [(1, 3), (1, 4)]
    path = flow.paths("STG", 8)[8]
    assert path.opcodes == Counter({"MOV": 1, "LDG.E": 2, "STG.E": 8, "BRA": 2, "EXIT": 1})
    assert 7 not in flow.paths("STG", 8)
    assert path.bytes("STG") == 32 and path.count("LDG|STG") == 10


def test_nested_loops_run_as_often_as_said():
    flow = program("""
        a: MOV
        b: STG.E.64
        @P0 BRA b
        @P1 BRA a
        EXIT
    """)
    path = flow.paths("STG", 9, (3, 3))[9]
    assert path.opcodes == Counter({"MOV": 3, "STG.E.64": 9, "BRA": 12, "EXIT": 1})
    assert path.bytes("STG") == 72
    (inner,) = [loop for loop in flow.loops if loop.depth == 2]
    assert flow.turns(inner)[0].opcodes == Counter({"STG.E.64": 1, "BRA": 1})


def test_divergence_before_a_shuffle_and_calls_are_not_followed():
    flow = program("""
        BRA.DIV UR4 cold
        a: SHFL.BFLY
        @P0 CALL.REL.NOINC $division
        EXIT
        cold: WARPSYNC
        NOP
        NOP
        BRA a
    """)
    assert flow.paths()[0].opcodes == Counter({"BRA.DIV": 1, "SHFL.BFLY": 1, "CALL.REL.NOINC": 1, "EXIT": 1})


@pytest.mark.parametrize(
    "registers, shared, threads, expected",
    [(64, 0, 256, (4, 0.5)), (168, 111744, 384, (1, 0.1875)), (32, 0, 1024, (2, 1.0)), (33, 0, 1024, (1, 0.5))],
)
def test_occupancy(registers, shared, threads, expected):
    import cuda_budget

    assert cuda_budget.occupancy(cuda_budget.CARDS["90"], registers, shared, threads) == expected


def test_every_measure_of_ours_has_a_budget_and_no_other_does():
    import cuda_budget

    names = {measure.name for measure in cuda_budget.MEASURES if not measure.peer}
    budgets = json.loads(cuda_budget.BUDGETS.read_text())
    assert names == set(budgets)
    assert all(set(limits) == set(cuda_budget.CARDS) for limits in budgets.values())


def test_budgets_keep_what_was_promised():
    """float32 gathers: at most 3 instructions per element of 64 channels, 2.2 of 256; a bfloat16 step of 128 x 256:
    73 % of an H100's dense rate: 75 before an H200 was there (benchmarks/results/gpu_H200_2026-11-26)."""
    import cuda_budget

    budgets = json.loads(cuda_budget.BUDGETS.read_text())
    for channels, most in ((64, 3.0), (256, 2.2)):
        assert max(budgets[f"gather, float32, {channels} channels per group"].values()) <= most
    clocks = 128 * 256 * 64 / cuda_budget.CARDS["90"].fma
    assert clocks / budgets["fused convolution, bfloat16, 128 x 256 x 64: step"]["90"] >= 0.73


@pytest.mark.parametrize("limit, complaint", [(3.0, None), (2.9, "OVER THE BUDGET OF 2.9"), (None, "NO BUDGET")])
def test_a_budget_exceeded_is_an_error(monkeypatch, capsys, tmp_path, limit, complaint):
    import cuda_budget

    class Made:
        """One kernel of three instructions that stores one element per warp."""

        def __init__(self, cubins):
            self.resources, self.names = {"kernel": (40, 0, 0)}, {"kernel": "kernel"}

        def find(self, pattern):
            return "kernel"

        def flow(self, mangled):
            return program("MOV\n STG.E\n EXIT")

    measure = cuda_budget.Measure("a measure", "kernel", cuda_budget.Elements(1, 4 * 32))
    (tmp_path / "budgets.json").write_text(json.dumps({} if limit is None else {"a measure": {"90": limit}}))
    monkeypatch.setattr(cuda_budget, "MEASURES", [measure])
    monkeypatch.setattr(cuda_budget, "BUDGETS", tmp_path / "budgets.json")
    monkeypatch.setattr(cuda_budget, "Kernels", Made)
    monkeypatch.setattr(cuda_budget, "own_kernels", lambda folder: [])
    monkeypatch.setattr(cuda_budget, "peer_library", lambda: None)
    monkeypatch.setattr(cuda_budget, "shared_sizes", dict)
    monkeypatch.setattr(cuda_budget, "short_name", lambda name: name)
    monkeypatch.setattr(cuda_budget, "toolkit_name", lambda: "CUDA")
    monkeypatch.setattr(sys, "argv", ["cuda_budget.py", "--arch", "90", "--output", str(tmp_path / "table.txt")])
    if complaint is None:
        cuda_budget.main()
    else:
        with pytest.raises(SystemExit, match="1 measures exceed their budget, or have none"):
            cuda_budget.main()
        assert complaint in (tmp_path / "table.txt").read_text()
    assert "3.00" in capsys.readouterr().out
