"""The table of ScopeNet's variants: what it averages, and what it runs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "ablate_scope.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("ablate_scope", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablate_scope", module)
    spec.loader.exec_module(module)
    return module


def metrics(value):
    return {"AP": value, "AP50": value, "AP75": value, "AP_S": None, "AP_M": value, "AP_L": value}


def test_mean_and_spread(tool):
    text = tool.table({"a": {0: metrics(0.4), 1: metrics(0.5), 2: metrics(0.6)}, "b": {0: metrics(0.25)}})
    first, second = text.splitlines()[2:]
    assert first == "| a | 0, 1, 2 | 50.0 ± 10.0 | 50.0 ± 10.0 | 50.0 ± 10.0 | – | 50.0 ± 10.0 | 50.0 ± 10.0 |"
    assert second == "| b | 0 | 25.0 | 25.0 | 25.0 | – | 25.0 | 25.0 |"


def test_runs_what_is_missing(tool, tmp_path, monkeypatch):
    """One training for three ways of scoring; nothing that is there already."""
    commands = []

    def pretend(command, **options):
        commands.append(command)
        values = dict(zip(command[-2::-2], command[-1::-2]))
        folder = Path(values["OUTPUT_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        if "--eval-only" in command:
            (folder / "metrics.json").write_text(json.dumps(metrics(0.5)))
        else:
            (folder / "model_final.pth").write_text("")

    monkeypatch.setattr(tool.subprocess, "run", pretend)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["ablate_scope.py", "--output", str(tmp_path)])
        tool.main()
    trained = [c for c in commands if "--eval-only" not in c]
    assert len(trained) == len({row.training for row in tool.ROWS}) == 6
    assert len(commands) - len(trained) == len(tool.ROWS)
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + len(tool.ROWS)
