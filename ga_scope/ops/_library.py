"""Finds and loads the compiled operators, and says precisely why when it cannot."""

import json
import platform
import sys
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent.parent
BUILD_RECORD = PACKAGE / "_build_record.json"
REBUILD = "rebuild with: pip install -e . --no-build-isolation (or: make install)"


def build_record():
    """What the library was built for, as ``setup.py`` wrote it; None without a build."""
    if not BUILD_RECORD.exists():
        return None
    return json.loads(BUILD_RECORD.read_text())


def _describe(record):
    if record is None:
        return "no build record"
    cuda = f"CUDA {record['cuda']} for {record['cuda_arch_list']}" if record["cuda"] else "no CUDA"
    return (
        f"torch {record['torch']} (stable ABI, torch >= {record['torch_target']}), {cuda}, "
        f"{record['machine']}, ga_scope {record['ga_scope']}"
    )


def _found():
    return f"torch {torch.__version__}, Python {platform.python_version()} on {platform.machine()} ({sys.platform})"


def _load():
    libraries = sorted(PACKAGE.glob("_operators*.so"))
    if not libraries:
        raise ImportError(f"ga_scope's operators are not built: no _operators*.so in {PACKAGE}; {REBUILD}")
    record = build_record()
    if len(libraries) > 1:
        names = ", ".join(path.name for path in libraries)
        raise ImportError(f"ga_scope: several operator libraries in {PACKAGE}: {names}; delete the stale ones")
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        raise ImportError(
            f"ga_scope: cannot load {libraries[0]}: {error}\n"
            f"  built for: {_describe(record)}\n  found:     {_found()}\n  {REBUILD}"
        ) from error
    return libraries[0]


LIBRARY = _load()
