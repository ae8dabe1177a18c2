"""Pages that are written from the code when the site is built: every key, and every command's help."""

import contextlib
import io
import sys
from pathlib import Path

from ga_scope.cli.main import COMMANDS, command_of, usage
from ga_scope.config import SCHEMA
from ga_scope.config.describe import facts

SECTIONS = {
    "MODEL.GUIDED_ANCHORING": "Guided anchors",
    "MODEL.SCOPENET": "ScopeNet",
    "MODEL.RETINANET": "RetinaNet and GA-RetinaNet",
    "MODEL.ROI_HEADS": "ROI heads",
    "MODEL.ROI_BOX_HEAD": "The box head",
    "MODEL.RPN": "Proposals",
    "MODEL.STAGED_RPN": "RPNs of two stages",
    "MODEL.PROPOSAL_GENERATOR": "Which proposals",
    "MODEL.ANCHOR_GENERATOR": "Fixed anchors",
    "MODEL.RESNETS": "ResNet",
    "MODEL.TIMM": "Backbones of timm",
    "MODEL": "Model and backbone",
    "DATASETS": "Datasets",
    "DATALOADER": "Reading",
    "INPUT": "Images",
    "SOLVER": "Training",
    "TEST": "Evaluation",
    "": "Runs",
}


def section_of(name: str) -> str:
    return next(prefix for prefix in SECTIONS if name.startswith(f"{prefix}.") or not prefix)


def keys() -> str:
    """Every key: its meaning, what it may be, its default, who reads it."""
    by_section: dict[str, list] = {}
    for key in SCHEMA.keys.values():
        by_section.setdefault(section_of(key.name), []).append(key)
    lines = [
        "# Every key",
        "",
        "A configuration is a yaml, with `_BASE_` for what it builds on, and `KEY VALUE` pairs of the command line on "
        "top. A value that a key cannot have, and a key that nothing reads, are errors that name it. In a terminal: "
        "`ga-scope explain KEY`. Sections, equations and tables are those of the two papers.",
        "",
    ]
    for prefix in sorted(by_section, key=lambda p: list(SECTIONS)[::-1].index(p)):
        lines += [f"## {SECTIONS[prefix]}{f': {prefix}' if prefix else ''}", ""]
        for key in by_section[prefix]:
            lines += [f"### {key.name}", ""]
            found = dict(facts(key))
            lines += [plain(found.pop("meaning")), ""] if "meaning" in found else []
            lines += [f"- {name}: `{text}`" if name in ("expected", "default") else f"- {name}: {plain(text)}"
                      for name, text in facts(key) if name != "meaning"]  # fmt: skip
            lines.append("")
    return "\n".join(lines)


def plain(text: str) -> str:
    """As text: nothing in it is markup."""
    for sign in "\\`*_{}[]<>#|~$":
        text = text.replace(sign, f"\\{sign}")
    return text


def commands() -> str:
    """Every command's ``--help``."""
    lines = ["# Commands", "", "```text", usage().rstrip(), "```", ""]
    for name in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            command_of(name)(["--help"], prog=f"ga-scope {name}")
        lines += [f"## ga-scope {name}", "", "```text", out.getvalue().rstrip(), "```", ""]
    return "\n".join(lines)


def write(folder: Path):
    """Writes the pages, where they have changed."""
    folder.mkdir(exist_ok=True)
    for name, text in (("keys.md", keys()), ("commands.md", commands())):
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
