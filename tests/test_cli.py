"""``ga-scope``: one command for all, whose help is a page and whose names work from any folder."""

import pytest

import ga_scope
from ga_scope.cli.main import COMMANDS, command_of, main
from ga_scope.config import SCHEMA
from ga_scope.config.describe import facts, find_keys
from ga_scope.config.files import CONFIGS, find_config, read_yaml
from ga_scope.errors import ConfigError


def run(capsys, *arguments):
    """What a command prints, its errors, and its exit code."""
    try:
        main(list(arguments))
        code = 0
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    return printed.out, printed.err, code


# ---- help ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_all_are_listed(argument, capsys):
    out, _, code = run(capsys, *argument)
    assert code == 0 and all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "env"])
def test_help_is_a_page(name, capsys):
    """What it does, how it is called by its own name, every option explained, and examples that its parser takes."""
    out, err, code = run(capsys, name, "--help")
    assert code == 0 and not err
    assert out.startswith(f"usage: ga-scope {name} ")
    before, _, examples = out.partition("\nExamples:\n")
    assert len(before.splitlines()) > 8 and f"  ga-scope {name} " in examples
    assert max(map(len, out.splitlines())) <= 120


def test_what_is_no_command_is_named(capsys):
    out, err, code = run(capsys, "trian")
    assert code == 2 and not out and err.endswith("got 'trian'; did you mean train?\n")
    assert run(capsys, "--version")[0].strip() == ga_scope.__version__
    with pytest.raises(KeyError):
        command_of("trian")


def test_what_is_wrong_is_one_line(capsys):
    for arguments, message in (
        (["train", "--config", "nowhere"], "ConfigError: nowhere: no such configuration file, here or among"),
        (["explain", "MODEL.NOWHERE"], "ConfigError: MODEL.NOWHERE: no such key"),
        (["report", "/nowhere"], "ConfigError: /nowhere: expected the OUTPUT_DIR of a training"),
        (["predict", "x", "--run", "/nowhere", "--output", "y"], "ConfigError: /nowhere: expected the OUTPUT_DIR"),
    ):
        out, _, code = run(capsys, *arguments)
        assert not out and str(code).startswith(message) and "\n" not in code


# ---- configurations ------------------------------------------------------------------------------------


def test_configurations_by_name(tmp_path, monkeypatch, capsys):
    """From any folder; a file of one's own comes first; a base may be named so, too."""
    monkeypatch.chdir(tmp_path)
    name = "COCO-Detection/ga_faster_rcnn_R_50_FPN_1x"
    path = CONFIGS / f"{name}.yaml"
    assert find_config(name) == find_config(f"{name}.yaml") == find_config(f"configs/{name}.yaml") == path
    assert run(capsys, "configs", name)[0].strip() == str(path)
    listed = run(capsys, "configs")[0].split()
    assert name in listed and len(listed) == len([p for p in CONFIGS.rglob("*.yaml") if "Base-" not in p.name])
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {name}\nSEED: 3\n")
    base, own = read_yaml("mine.yaml")
    assert own == {"SEED": 3} and base["MODEL"]["PROPOSAL_GENERATOR"]["NAME"] == "GuidedAnchoringRPN"
    (tmp_path / "COCO-Detection").mkdir()
    (tmp_path / f"{name}.yaml").write_text("SEED: 4\n")
    assert read_yaml(f"{name}.yaml")[1] == {"SEED": 4}
    with pytest.raises(ConfigError, match="ga_fster_rcnn_R_50_FPN_1x: no such .*; similar: COCO-Detection/ga_faster"):
        find_config("ga_fster_rcnn_R_50_FPN_1x")


# ---- keys ----------------------------------------------------------------------------------------------


def test_explain_prints_the_schema(capsys):
    out, _, code = run(capsys, "explain", "MODEL.GUIDED_ANCHORING.SIGMA")
    assert code == 0 and out.startswith("MODEL.GUIDED_ANCHORING.SIGMA\n")
    for text in ("Eq. 2", "a number above 0", "8.0", "GuidedAnchoringRPN"):
        assert text in out
    assert run(capsys, "explain", "SIGMA")[0] == out
    section = run(capsys, "explain", "MODEL.STAGED_RPN")[0]
    assert section.count("expected") == len([k for k in SCHEMA.keys if k.startswith("MODEL.STAGED_RPN.")])
    assert "similar: MODEL.GUIDED_ANCHORING.SIGMA" in run(capsys, "explain", "SIGMAA")[2]
    assert run(capsys, "explain")[2] == 2


@pytest.mark.parametrize("name", SCHEMA.keys)
def test_every_key_can_be_explained(name):
    (key,) = find_keys(name)
    rows = dict(facts(key))
    assert rows["default"] == repr(key.default) and rows["expected"] == key.check.expected
    assert not rows["read by"].endswith(",") and ",," not in rows["read by"]
