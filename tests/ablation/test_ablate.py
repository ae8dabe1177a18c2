"""tools/ablate.py: commands, results, what is run again and what not, and that kills change nothing."""

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ga_scope.ablation.queue import ordered_runs
from ga_scope.ablation.real_tables import real_tables
from ga_scope.ablation.repeat import run_missing, run_tables
from ga_scope.ablation.report import as_dict, as_markdown
from ga_scope.ablation.runs import Run, RunFailed, Suite
from ga_scope.ablation.table import AR, Row, Table
from ga_scope.ablation.tables import GA_RPN, RPN, tables
from ga_scope.data import make_shapes
from ga_scope.engines import get_engine
from ga_scope.errors import ConfigError
from ga_scope.evaluation.report import write_text

ROOT = Path(__file__).parents[2]


def tool():
    spec = importlib.util.spec_from_file_location("ablate", ROOT / "tools" / "ablate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_runs():
    return {run for table in (tables() | real_tables()).values() for run, _ in ordered_runs(table.rows, [0])}


def opts_of(suite, run):
    command = suite.command(run, 0)
    return command[command.index("--config-file") + 1], [p for k, v in run.overrides.items() for p in (k, str(v))]


@pytest.mark.parametrize("dataset", ["coco", "shapes"])
def test_every_row_is_a_model_that_builds(dataset, tmp_path):
    suite, seen, engine = Suite(dataset, tmp_path, "torchvision"), set(), get_engine("torchvision")
    for run in all_runs():
        config, opts = opts_of(suite, run)
        assert (ROOT / config).exists(), config
        key = (config, *opts)
        # Table 7 differs in numbers of the ROI heads only.
        if run.kind == "train" and key not in seen and dataset == "shapes" and "fast_rcnn_" not in run.name:
            seen.add(key)
            files = ["DATASETS.PROPOSAL_FILES_TRAIN", "('a',)", "DATASETS.PROPOSAL_FILES_TEST", "('b',)"]
            opts += files if run.proposals else []
            engine.build(engine.setup(str(ROOT / config), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts]))


def test_the_papers_numbers():
    """Spot checks of the transcription; every row has a number for each column."""
    known = tables()
    assert set(known) == {"1", "2", "3", "4", "5", "6", "7", "hyper", "scope1", "scope2", "scope3", "scope-beyond"}
    for table in known.values():
        assert all(len(row.paper) == len(table.columns) for row in table.rows)
    assert known["1"].rows[-1].paper == (59.2, 65.2, 68.5, 40.9, 67.8, 79.0)
    assert [row.paper[0] for row in known["4"].rows] == [47.5, 48.0, 53.8, 54.0, 59.2, 56.1]
    assert [row.paper[0] for row in known["6"].rows] == [51.7, 54.0, 57.2, 59.2]
    assert known["7"].rows[-1].paper == (39.4, 59.3, 43.2)
    assert [row.paper[0] for row in known["scope1"].rows] == [35.8, 37.2, 38.0]
    assert [row.paper[2] for row in known["scope2"].rows] == [37.5, 38.9, 39.2, *[39.4] * 4, 39.5, 39.3, 39.4]


def test_tables_on_photos(tmp_path):
    """Each system once, from the configurations of the dataset, and no column for a paper that has no numbers."""
    found = real_tables()
    assert [row.label for row in found["real-proposals"].rows] == ["RPN, 3 anchors", "GA-RPN"]
    systems = {run.config for table in found.values() for row in table.rows for run in row.runs()}
    assert systems == {"rpn", "ga_rpn", "faster_rcnn", "ga_faster_rcnn", "retinanet", "ga_retinanet", "scopenet"}
    for name in ("bccd", "neu_det"):
        suite = Suite(name, tmp_path, "torchvision")
        for system in systems:
            assert (ROOT / suite.config(Run(system, system))).is_file()
        text = as_markdown(as_dict(suite, found["real-proposals"], [0]))
        assert f"Measured on {name} with the torchvision engine. Percent" in text and "paper" not in text


@pytest.mark.parametrize("dataset", ["bccd", "neu_det"])
def test_table_4_on_photos(dataset, tmp_path):
    """Its rows switch parts off, whose keys a dataset's configuration may have set."""
    suite, engine = Suite(dataset, tmp_path, "torchvision"), get_engine("torchvision")
    for row in tables()["4"].rows:
        config, opts = opts_of(suite, row.run)
        engine.setup(str(ROOT / config), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])


def test_needed_runs_come_first(tmp_path):
    order = [run.name for run, _ in ordered_runs(tables()["3"].rows, [0])]
    for before, after in (
        ("faster_rcnn", "finetune_rpn"),
        ("ga_rpn", "ga_rpn_proposals_train"),
        ("ga_rpn_proposals_train", "finetune_ga_rpn"),
        ("ga_rpn_proposals_test", "finetune_ga_rpn"),
    ):
        assert order.index(before) < order.index(after)
    assert len(order) == len(set(order))
    command = Suite("shapes", tmp_path, "torchvision").command(tables()["3"].rows[2].run, 1)
    weights = command[command.index("MODEL.WEIGHTS") + 1]
    assert weights == str(tmp_path / "shapes" / "faster_rcnn" / "seed1" / "model_final.pth")
    assert "DATASETS.PROPOSAL_FILES_TRAIN" in command


def test_scopenets_scores_share_a_training(tmp_path):
    """What differs in the score only is an evaluation of the same weights, with the model that was trained."""
    known = tables()
    rows = [row for name in ("scope1", "scope3", "scope-beyond") for row in known[name].rows]
    runs = [run for run, _ in ordered_runs(rows, [0])]
    assert [run.kind for run in runs].count("train") == 7
    suite = Suite("shapes", tmp_path, "torchvision")
    for run in (run for run in runs if run.kind == "eval"):
        command = suite.command(run, 0)
        assert command[command.index("MODEL.WEIGHTS") + 1] == str(suite.folder(run.weights, 0) / "model_final.pth")
        differ = {k for k in run.overrides if run.overrides[k] != run.weights.overrides.get(k)}
        assert differ == {"MODEL.SCOPENET.RESCORE"}


def test_one_stage_detectors_are_compared_on_one_schedule_with_equal_towers():
    names = ("scopenet", "scopenet_direct", "retinanet", "ga_retinanet")
    engine = get_engine("torchvision")
    scope, *others = (engine.setup(ROOT / f"configs/shapes/{name}_R_18_FPN.yaml") for name in names)
    for name, other in zip(names[1:], others):
        for section in ("SOLVER", "INPUT", "DATASETS", "DATALOADER"):
            assert scope[section] == other[section], section
        assert scope.MODEL.FPN == other.MODEL.FPN
        part = other.MODEL["SCOPENET" if "scopenet" in name else "RETINANET"]
        for key in ("NUM_CONVS", "NORM", "NUM_CLASSES"):
            assert scope.MODEL.SCOPENET[key] == part[key], key


def written_once(path, text):
    """The script at ``path``; commands are asked for while an earlier run reads its own."""
    if not path.exists():
        write_text(path, text)
    return str(path)


class FakeSuite(Suite):
    """Runs of a tenth of a second in place of trainings."""

    def command(self, run, seed):
        script = written_once(
            self.output / "fake.py",
            "import sys, json, time, pathlib\n"
            "out = pathlib.Path(sys.argv[1])\n"
            "(out / 'metrics.json').write_text('{\"AR@10')\n"  # half-written first, as by a killed run
            "time.sleep(0.1)\n"
            "if sys.argv[3] == 'fails': sys.exit('broken on purpose')\n"
            "value = (len(sys.argv[3]) + int(sys.argv[2])) / 100\n"
            "(out / 'metrics.json').write_text(json.dumps({'AR@100': value, 'AR@300': None}))\n",
        )
        return [script, str(self.folder(run, seed)), str(seed), run.name]


def fake_table(names):
    return Table("Table X", {"AR100": "AR@100"}, [Row(n, Run(n, "rpn"), (50.0,)) for n in names])


def test_runs_what_is_missing_and_nothing_twice(tmp_path, capsys):
    suite, table = FakeSuite("shapes", tmp_path, "torchvision"), fake_table(["a", "bb"])
    run_tables(suite, {"x": table}, [0, 1])
    first = capsys.readouterr().out
    assert "[1/4]" in first and "[4/4, about" in first
    run_tables(suite, {"x": table}, [0, 1])
    assert "[1/" not in capsys.readouterr().out
    content = json.loads((tmp_path / "shapes" / "table_x.json").read_text())
    assert content["rows"][1]["measured"] == {"AR100": [2.0, 3.0]} and content["rows"][1]["seeds"] == [0, 1]
    text = (tmp_path / "shapes" / "table_x.md").read_text()
    assert "| bb | 2.5 ± 0.7 | 0 1 | 50 |" in text and "fake.py" in text
    result = tmp_path / "shapes" / "a" / "seed0" / "result.json"
    stale = json.loads(result.read_text()) | {"command": ["something", "else"]}
    result.write_text(json.dumps(stale))
    run_tables(suite, {"x": table}, [0, 1])
    assert "[1/1]" in capsys.readouterr().out


def test_only_some_rows_and_report(tmp_path, capsys):
    suite, table = FakeSuite("shapes", tmp_path, "torchvision"), fake_table(["a", "bb"])
    run_tables(suite, {"x": table}, [0], report_only=True)
    assert "| a | – | not run | 50 |" in capsys.readouterr().out
    run_tables(suite, {"x": table}, [0], ["bb"])
    out = capsys.readouterr().out
    assert "[1/1]" in out and "| a | – | not run | 50 |" in out and "| bb | 2.0 | 0 | 50 |" in out


def test_a_run_that_fails_is_named_with_its_log(tmp_path):
    suite = FakeSuite("shapes", tmp_path, "torchvision")
    with pytest.raises(RunFailed, match="fails: exit code 1; the end of .*log.txt: broken on purpose"):
        run_tables(suite, {"x": fake_table(["fails"])}, [0])
    assert suite.result(Run("fails", "rpn"), 0) is None


class TimedSuite(FakeSuite):
    """Runs that write when they began and ended."""

    def command(self, run, seed):
        script = written_once(
            self.output / "timed.py",
            "import json, pathlib, sys, time\n"
            "began = time.time()\n"
            "time.sleep(0.8)\n"
            "metrics = {'began': began, 'ended': time.time()}\n"
            "(pathlib.Path(sys.argv[1]) / 'metrics.json').write_text(json.dumps(metrics))\n",
        )
        return [script, str(self.folder(run, seed))]


def test_side_by_side(tmp_path, capsys):
    """Never more than ``jobs`` at once, a run after those that it needs, a measurement of speed alone."""
    first, second, third = (Run(name, "rpn") for name in "abc")
    rows = [
        Row("a", Run("after a", "rpn", weights=first), (), also=Run("speed", "rpn", weights=first, kind="speed")),
        Row("b", second, ()),
        Row("c", third, ()),
    ]
    suite = TimedSuite("shapes", tmp_path, "torchvision")
    run_missing(suite, rows, [0], jobs=2)
    assert capsys.readouterr().out.count("[") == 5
    times = {run.name: suite.result(run, 0)["metrics"] for run, _ in ordered_runs(rows, [0])}
    assert len(times) == 5
    assert times["after a"]["began"] > times["a"]["ended"]

    def beside(name):
        own = times[name]
        return {n for n, t in times.items() if t["began"] < own["ended"] and own["began"] < t["ended"]} - {name}

    assert beside("speed") == set()
    assert beside("a") == {"b"}
    for moment in (t["began"] for t in times.values()):
        assert sum(t["began"] <= moment < t["ended"] for t in times.values()) <= 2


def test_a_failure_ends_the_runs_beside_it(tmp_path):
    class OneFails(TimedSuite):
        def command(self, run, seed):
            text = "import sys, time\n" + ("sys.exit(3)" if run.name == "a" else "time.sleep(60)")
            return [written_once(tmp_path / f"{run.name}.py", text)]

    suite, began = OneFails("shapes", tmp_path, "torchvision"), time.time()
    with pytest.raises(RunFailed, match="exit code 3"):
        run_missing(suite, [Row(name, Run(name, "rpn"), ()) for name in "ab"], [0], jobs=2)
    assert time.time() - began < 30


def test_kills_change_nothing(tmp_path):
    """Killed five times at random moments, the finished table is that of a run in one go."""
    names = ["a" * n for n in range(1, 9)]

    def start(folder):
        """The process id of a child that makes the table."""
        child = os.fork()
        if child == 0:
            with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
                suite = FakeSuite("shapes", folder, "torchvision")
                run_tables(suite, {"x": fake_table(names)}, [0, 1])
            os._exit(0)
        return child

    def running(child):
        return os.waitpid(child, os.WNOHANG) == (0, 0)

    def done(folder):
        return len(list(folder.glob("shapes/*/seed*/result.json")))

    killed, kills = tmp_path / "killed", 0
    while kills < 5:
        child, before = start(killed), done(killed)
        while done(killed) == before:  # it is past its start
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.15))
        assert running(child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    for folder in (killed, tmp_path / "whole"):
        assert os.waitpid(start(folder), 0)[1] == 0
    texts = [(tmp_path / f / "shapes" / "table_x.md").read_text().replace(f, "") for f in ("killed", "whole")]
    assert texts[0] == texts[1] and done(killed) == 2 * len(names)


def test_unknown_rows_are_named(tmp_path, monkeypatch):
    arguments = ["ablate.py", "--table", "4", "--rows", "X", "--output", str(tmp_path), "--report"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(ConfigError, match=r"--rows: expected of 'none \(RPN\)', .*got \['X'\]"):
        tool().main()


def test_markdown_of_nothing_yet(tmp_path):
    content = as_dict(
        Suite("coco", tmp_path, "detectron2"), Table("T", AR, [Row("r", RPN, (1, 2, 3, 4, 5, None))]), [0]
    )
    text = as_markdown(content)
    assert "| r | – | – | – | – | – | – | not run | 1 | 2 | 3 | 4 | 5 | – |" in text
    assert "python train_net.py --config-file configs/COCO-Detection/rpn_R_50_FPN_1x.yaml --engine detectron2" in text
    assert GA_RPN.name == "ga_rpn"


# ---- with real trainings ---------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """Overrides for a training of four steps on eight images of 64 px."""
    shapes = make_shapes(tmp_path / "shapes", train=8, val=4, size=64)
    entries = [
        [f"tiny_{split}", str(shapes / "annotations" / f"instances_{split}.json"), str(shapes / split)]
        for split in ("train", "val")
    ]
    settings = {
        "DATASETS.REGISTER": entries,
        "DATASETS.TRAIN": ("tiny_train",),
        "DATASETS.TEST": ("tiny_val",),
        "DATALOADER.NUM_WORKERS": 0,
        "MODEL.DEVICE": "cpu",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 4,
    }
    return [part for key, value in settings.items() for part in (key, value if isinstance(value, str) else repr(value))]


@pytest.mark.slow
@pytest.mark.long
def test_kills_of_real_trainings_change_nothing(tiny, tmp_path):
    """tools/ablate.py, killed five times at random moments: the final table is that of a run in one go."""
    rows = ["none (RPN)", "L. + S. + F.A."]

    def start(output):
        flags = ["--table", "4", "--rows", *rows, "--engine", "torchvision", "--output", str(output)]
        command = [sys.executable, str(ROOT / "tools" / "ablate.py"), *flags, *tiny]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def table(output):
        content = json.loads((output / "shapes" / "table_4.json").read_text())
        return [(row["label"], row["measured"], row["seeds"]) for row in content["rows"]]

    def done(output):
        return len(list(output.glob("shapes/*/seed0/result.json")))

    began = time.time()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    one_run = (time.time() - began) / len(rows)
    for _ in range(5):
        # The last run must not be through before the last kill.
        longest = 0.4 if done(killed) else 1.2
        process = start(killed)
        time.sleep(random.uniform(0.2, longest) * one_run)
        assert process.poll() is None
        process.kill()
        process.wait()
    assert start(killed).wait() == 0
    assert done(killed) == len(rows)
    assert table(killed) == table(whole)
    assert any(values for _, measured, _ in table(whole) for values in measured.values())
