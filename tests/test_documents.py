"""What the documents name is there: files, modules and their names, keys and commands."""

import contextlib
import functools
import importlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import yaml
from fvcore.common.config import CfgNode

from ga_scope.cli.main import command_of
from ga_scope.config import SCHEMA, add_ga_scope_config, flat

ROOT = Path(__file__).parents[1]
BUILT = ("docs/generated", "docs/_build")  # by `make docs`
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if not str(path.relative_to(ROOT)).startswith(BUILT)]
DOCUMENTS = [ROOT / "README.md", ROOT / "MODEL_ZOO.md", *PAGES]
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
    named = {name for name in named if "NAME" not in name and not name.startswith(BUILT)}
    missing = [name for name in named if not (ROOT / name).exists()]
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
    """Every --option that stands behind a command is one that its help explains."""
    content = text(path)
    if path.suffix == ".md":
        content = "\n".join(body for _, body in CODE.findall(content))
    for line in content.replace("\\\n", " ").splitlines():
        command = re.search(r"(?:\./)?((?:tools/)?\w+\.py|ga-scope [a-z]+)\b(.*)", line.split("#")[0])
        if command is None or command[1] == "setup.py":
            continue
        if not command[1].startswith("ga-scope ") and not (ROOT / command[1]).exists():
            continue
        said = help_of(command[1])
        for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", command[2]):
            assert re.search(rf"{option}\b", said), f"{command[1]}: {option}"


@functools.cache
def help_of(command: str) -> str:
    """Of ``ga-scope NAME``, or of a script: that of the command that it is, or its source."""
    if not command.startswith("ga-scope "):
        source = text(ROOT / command)
        module = re.search(r"^from ga_scope\.cli(?:\.(\w+))? import (?:\w+, )?(main|train_net)$", source, re.M)
        if module is None:
            return source
        source = text(ROOT / "ga_scope" / "cli" / f"{module[1] or 'train'}.py")
        return source + text(ROOT / "ga_scope" / "cli" / "common.py")
    name = command.split()[1]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        command_of(name)(["--help"], prog=command)
    return out.getvalue()


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


def test_the_site_has_every_key_and_command():
    """The pages that docs/generate.py writes from the code; what is in them is no markup."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    keys, commands = generate.keys(), generate.commands()
    assert re.findall(r"^### (.+)$", keys, re.M) and set(re.findall(r"^### (.+)$", keys, re.M)) == set(SCHEMA.keys)
    assert "- default: `8.0`" in keys and "Eq. 2: w = SIGMA \\* stride" in keys
    for name in generate.COMMANDS:
        assert f"## ga-scope {name}\n" in commands and f"usage: ga-scope {name} " in commands
    unnamed = {generate.section_of(key) for key in SCHEMA.keys} - set(generate.SECTIONS)
    assert not unnamed


def test_troubleshooting_quotes_what_the_code_says():
    """Of each text its longest part that no value stands in."""
    quoted = re.findall(r"^(`.+`)\n: ", text(ROOT / "docs" / "troubleshooting.md"), re.M)
    assert len(quoted) > 20
    files = [*(ROOT / "ga_scope").rglob("*.py"), ROOT / "setup.py"]
    source = re.sub(r"\"\s*\n\s*f?\"", "", "\n".join(map(text, files)))  # one text over several lines
    for line in quoted:
        for error in re.findall(r"`(.+?)`", line):
            parts = re.split(r"\.\.\.|[A-Za-z]+Error: |\b(?:KEY|NAME|[ABMNWH])\b|GA_SCOPE_WITH_CUDA=1, but ", error)
            part = max(parts, key=len).strip(" :;,")
            assert len(part) > 5 and part in source, error
