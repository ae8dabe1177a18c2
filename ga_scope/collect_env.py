"""``python -m ga_scope.collect_env``: the facts that a bug report needs."""

import argparse
import importlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from . import __version__

PACKAGES = ("torchvision", "detectron2", "timm", "fvcore", "pycocotools", "msgspec", "numpy", "pillow")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.machine()


def _operators():
    try:
        library = importlib.import_module("ga_scope.ops._library")
    except ImportError as error:
        return [("operators", str(error))]
    record = library.build_record() or {}
    rows = [("operators", str(library.LIBRARY)), ("CPU instruction set", torch.ops.ga_scope.cpu_capability())]
    return rows + [(f"built: {name}", value) for name, value in record.items()]


def collect() -> list[tuple[str, str]]:
    """Names and values, in the order of printing."""
    rows = [
        ("ga_scope", __version__),
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
        ("processor", f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"),
        ("torch", torch.__version__),
        ("torch CUDA", torch.version.cuda or "none"),
    ]
    rows += [(name, _version(name)) for name in PACKAGES]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rows.append(("GPUs", ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none"))
    return rows + _operators()


def command(argv=None, prog=None):
    """``ga-scope env``."""
    argparse.ArgumentParser(prog=prog, description="Prints the facts that a bug report needs.").parse_args(argv)
    main()


def main():
    rows = collect()
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


if __name__ == "__main__":
    main()
