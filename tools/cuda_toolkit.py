"""Where the CUDA toolkit is. Used by setup.py and tools."""

import os
import re
import shutil
import subprocess
from pathlib import Path


def find_cuda_toolkit():
    """The toolkit's root, or None. ``nvcc`` on PATH may be a wrapper: only nvcc itself knows its TOP."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        if root and (Path(root) / "bin" / "nvcc").exists():
            return Path(root)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    probe = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", probe.stdout + probe.stderr, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else None


def toolkit_version(toolkit):
    """As "13.0"."""
    text = subprocess.run([toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", text).group(1)
