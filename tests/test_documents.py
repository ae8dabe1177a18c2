"""What the documents name is there: files, modules and their names, keys and commands."""

import functools
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from fvcore.common.config import CfgNode

from ga_scope.config import SCHEMA, add_ga_scope_config, flat

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "MODEL_ZOO.md", *sorted((ROOT / "docs").rglob("*.md")))]
FOLDERS = "benchmarks|configs|csrc|docs|ga_scope|tests|tools"
CODE = re.compile(r"```(\w*)\n(.*?)```", re.S)


def text(path) -> str:
    return path.read_text()


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_files_are_there(document):
    """Of this repository, by their whole path (NAME stands for any); what commands write lies elsewhere."""
    named = set(re.findall(rf"(?<![\w/.-])(?:\./)?((?:{FOLDERS})/[\w./-]*\w)", text(document)))
    named |= {str((document.parent / link).relative_to(ROOT)) for link in links(document)}
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing


def links(document) -> list[str]:
    """Within the repository, from the document's folder."""
    found = re.findall(r"\]\(([^)#:\s]+)\)", text(document))
    return [str(Path(link)) for link in found if not link.startswith("..")]


def test_python_names_are_there(document):
    """``ga_scope.a.b`` in the text, and what code imports."""
    code = "\n".join(body for kind, body in CODE.findall(text(document)) if kind == "python")
    names = re.findall(r"\bga_scope(?:\.\w+)+", text(document))
    for module, imported in re.findall(r"^from (ga_scope[\w.]*) import (.+)$", code, re.M):
        names += [f"{module}.{name.strip()}" for name in imported.split("#")[0].split(",")]
    for name in set(names):
        if "detectron2" in name:
            pytest.importorskip("detectron2")
        assert exists(name), name


def exists(name: str) -> bool:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@functools.cache
def known_keys() -> set[str]:
    """Of both engines, as far as they are installed, and their parts."""
    names = set(SCHEMA.keys)
    try:
        from detectron2.config import get_cfg

        names |= set(flat(add_ga_scope_config(get_cfg())))
    except ImportError:
        names |= set(flat(SCHEMA.add_defaults(CfgNode(), builtin=True)))
    return names | {name.rsplit(".", n)[0] for name in names for n in range(1, name.count(".") + 1)}


@pytest.mark.detectron2
def test_keys_are_there(document):
    """Written whole: MODEL.A.B and so on; ``MODEL.A.*`` is a part."""
    known = known_keys()
    found = re.findall(r"\b((?:MODEL|SOLVER|DATASETS|DATALOADER|INPUT|TEST)(?:\.[A-Z][A-Z0-9_]*)+)\b", text(document))
    assert not sorted(set(found) - known)


def test_yaml_is_a_configuration(document):
    known = known_keys()
    for kind, body in CODE.findall(text(document)):
        if kind == "yaml":
            assert set(flat(yaml.safe_load(body))) - {"_BASE_"} <= known, body


COMMANDS = [*DOCUMENTS, ROOT / "Makefile", ROOT / "tools" / "gpu_check.sh"]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_their_options(path):
    """Every --option that stands behind a tool is one that its parser has."""
    content = text(path)
    if path.suffix == ".md":
        content = "\n".join(body for _, body in CODE.findall(content))
    for line in content.replace("\\\n", " ").splitlines():
        command = re.search(r"(?:\./)?((?:tools/)?\w+\.py)\b(.*)", line.split("#")[0])
        if command is None or command[1] == "setup.py" or not (ROOT / command[1]).exists():
            continue
        source = text(ROOT / command[1]) + text(ROOT / "ga_scope" / "cli.py")
        for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", command[2]):
            assert f'"{option}"' in source, f"{command[1]}: {option}"


def test_what_the_changes_name_is_there():
    """The right column of the table of what moved."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", text(ROOT / "CHANGELOG.md"), re.M)[2:]
    assert len(rows) > 10
    for _, now in rows:
        for name in re.findall(r"`(ga_scope(?:\.\w+)+)(?![\w*])", now):
            if "detectron2" in name and importlib.util.find_spec("detectron2") is None:
                continue
            assert exists(name), name
        for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", now):
            assert (ROOT / path).exists(), path
