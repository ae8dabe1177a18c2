"""What a bug report needs is there, whatever is not installed."""

import importlib.metadata
from pathlib import Path

import torch

from ga_scope import __version__, collect_env


def test_it_says_versions_and_what_was_built():
    found = dict(collect_env.collect())
    assert found["ga_scope"] == __version__ and found["torch"] == torch.__version__
    for name in ("torchvision", "fvcore", "msgspec", "numpy"):
        assert found[name] == importlib.metadata.version(name)
    assert Path(found["operators"]).exists()
    assert found["CPU instruction set"] == torch.ops.ga_scope.cpu_capability()


def test_what_is_missing_is_said(monkeypatch, capsys):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def load(name):
        raise ImportError("the operators are not built")

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(collect_env.importlib, "import_module", load)
    collect_env.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split(maxsplit=1) == ["timm", "not installed"] for line in lines)
    assert lines[-1].endswith("the operators are not built")
