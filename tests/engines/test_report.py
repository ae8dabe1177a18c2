"""``ga-scope report``: the numbers of a run, and the page, in a browser."""

import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from ga_scope import Detector
from ga_scope.cli.report import main
from ga_scope.data.shapes import CLASSES
from ga_scope.errors import CheckpointError, ConfigError
from ga_scope.evaluation import Evaluation
from ga_scope.reporting.charts import MOST_POINTS, bar_chart, line_chart, thinned
from ga_scope.reporting.curves import read_curves
from ga_scope.reporting.facts import WORST, collect
from ga_scope.reporting.page import render

from .conftest import ENGINES, config, overrides, random_weights

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def a_run(name, shapes, folder, classes=CLASSES, **more):
    """OUTPUT_DIR as a training leaves it: configuration, weights, TensorBoard's file; the weights are random."""
    opts = overrides(shapes, folder, **more)
    opts = random_weights(name, opts, folder, classes=list(classes))
    weights = folder / "random.pth"
    weights.rename(folder / "model_final.pth")
    detector = Detector(config(name), folder / "model_final.pth", opts[:-2], "torchvision")
    (folder / "config.yaml").write_text(detector.cfg.dump())
    with SummaryWriter(folder) as board:
        for step in range(1500):
            board.add_scalar("total_loss", 2 / (step + 1), step)
            board.add_scalar("lr", 0.1, step)
        board.add_scalar(f"val_{shapes.parent.name}/AP", 0.25, 1499)
    return folder


@pytest.fixture(scope="module")
def guided(shapes, tmp_path_factory):
    everything = {"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    return a_run("ga_faster_rcnn", shapes, tmp_path_factory.mktemp("guided"), **everything)


@pytest.fixture(scope="module")
def scopes(shapes, tmp_path_factory):
    return a_run("scopenet", shapes, tmp_path_factory.mktemp("scopes"), **{"MODEL.SCOPENET.PRIOR_PROB": 0.3})


def facts_of(folder, shapes, engine="torchvision"):
    detector = Detector.of_run(folder, engine=engine)
    dataset = detector.engine.dataset(f"val_{shapes.parent.name}", detector.cfg)
    return collect(detector, dataset, folder), detector, dataset


@pytest.fixture(scope="module")
def both(guided, scopes, shapes):
    return [facts_of(folder, shapes) for folder in (guided, scopes)]


# ---- numbers -------------------------------------------------------------------------------------------


def test_curves_are_what_was_written(guided, shapes):
    curves = read_curves(guided, f"val_{shapes.parent.name}")
    assert set(curves.losses) == {"total_loss"} and curves.metrics == {"AP": [(1500, 0.25)]}
    steps, values = zip(*curves.losses["total_loss"])
    assert steps[-1] == 1500 and len(steps) == 1000
    np.testing.assert_allclose(values, [2 / step for step in steps], rtol=1e-6)
    assert read_curves(guided / "nowhere", "x") == ({}, {})


@pytest.mark.parametrize("which", [0, 1], ids=["guided", "scopes"])
def test_facts_are_those_of_the_evaluation(which, both):
    facts, detector, dataset = both[which]
    evaluation = Evaluation(dataset)
    results = list(detector.stream(dataset))
    for found in results:
        evaluation.add(found.record["image_id"], found)
    metrics = evaluation.metrics()
    assert facts.metrics == pytest.approx(metrics, nan_ok=True) and metrics["box_AR@100"] > 0
    for name, objects, ap, *_ in facts.per_class:
        assert ap == pytest.approx(metrics[f"AP-{name}"], nan_ok=True)
        assert objects == (dataset.annotations.labels == dataset.classes.index(name)).sum()
    labels = np.concatenate([dataset.objects(i)[1] for i in range(len(dataset))])
    np.testing.assert_array_equal(facts.confusion[:-1].sum(1), np.bincount(labels, minlength=5))
    said = sum(int((found.scores >= facts.threshold).sum()) for found in results)
    assert facts.confusion[:, :-1].sum() <= said  # but those in regions that do not count
    assert facts.counts["side"] and sum(facts.counts["side"]) == sum(facts.counts["ratio"]) == len(labels)
    for part in ("side", "ratio"):
        for values in facts.recalls[part].values():
            assert all(math.isnan(v) == (n == 0) for v, n in zip(values, facts.counts[part]))
    weighted = [v * n for v, n in zip(facts.recalls["side"]["detections"], facts.counts["side"]) if n]
    matched = sum(weighted) / len(labels)
    assert matched == pytest.approx(sum(v * n for v, n in zip(facts.recalls["ratio"]["detections"],
                                        facts.counts["ratio"]) if n) / len(labels))  # fmt: skip
    assert len(facts.found) == len(labels) and len(facts.misses) == min(WORST, list(facts.found.values()).count(False))


def test_what_each_kind_of_model_adds(both):
    (guided, *_), (scopes, *_) = both
    assert guided.diagnosis["objects"] == len(guided.found) and scopes.diagnosis is None
    assert "100 proposals" in guided.recalls["side"] and "100 proposals" not in scopes.recalls["side"]
    assert set(guided.calibration) == {"score"} and set(scopes.calibration) == {"score", "p_cls", "p_loc"}
    assert all(picture.locations for picture in guided.misses) and not any(p.locations for p in scopes.misses)
    assert all(p.image.startswith("data:image/jpeg;base64,") for p in guided.misses + scopes.alarms)


# ---- the page ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Ids, links, sources; and that what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources, self.open = set(), [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert found.get("id") not in self.ids or "id" not in found
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in ("meta", "link", "img", "line", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in ("meta", "link", "img", "line", "circle", "rect", "br"):
            assert self.open.pop() == tag


def assert_self_contained(text):
    page = Page(text)
    anchors = [link for link in page.links if link.startswith("#")]
    assert len(anchors) > 8 and {link[1:] for link in anchors} <= page.ids
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"<script|@import|url\(|https?://", text)


@pytest.mark.parametrize("engine", ENGINES)
def test_of_a_run(engine, guided, tmp_path, capsys):
    output = tmp_path / "new" / "r.html"
    main([str(guided), "--engine", engine, "--output", str(output), "--limit", "4"])
    assert f"{output} (" in capsys.readouterr().out
    text = output.read_text()
    assert_self_contained(text)
    for heading in ("Training", "Confusion", "Recall by size", "Where guided anchors lose objects", "Worst misses"):
        assert heading in text
    assert text.count("<img") >= 2 and "total_loss" in text and "triangle" in text


def test_of_two_runs(both, tmp_path):
    text = render([facts for facts, *_ in both])
    assert_self_contained(text)
    assert "What one finds and the other does not" in text and "p_loc" in text


def test_of_a_model_without_classes(shapes, tmp_path):
    folder = a_run("ga_rpn", shapes, tmp_path, **{"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.0})
    main([str(folder), "--engine", "torchvision", "--limit", "3"])
    text = (folder / "report.html").read_text()
    assert_self_contained(text)
    assert "the model knows no classes" in text and "after NMS" in text


def test_what_is_wrong_is_named(guided, tmp_path):
    with pytest.raises(ConfigError, match=r"expected the OUTPUT_DIR of a training, with config.yaml in it, got none"):
        main([str(tmp_path)])
    shutil.copy(guided / "config.yaml", tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint \(model_final.pth\), got none"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["a", "b", "c"])


def test_other_classes_are_refused(shapes, tmp_path):
    folder = a_run("scopenet", shapes, tmp_path, classes=CLASSES[::-1])
    with pytest.raises(CheckpointError, match="was trained on the classes letter, star, .* has rectangle, ellipse, "):
        main([str(folder), "--engine", "torchvision"])


def test_charts_say_what_they_are_given():
    text = line_chart([("a<b", [(0, 1), (10, 3), (20, math.nan)])], "step", "loss")
    assert text.count("<polyline") == 1 and "a&lt;b" in text and "nan" not in text
    ((x1, y1), (x2, y2)) = [tuple(map(float, p.split(","))) for p in re.search(r'points="(.+?)"', text)[1].split()]
    assert x2 > x1 and y2 < y1  # up is more
    assert "no values" in line_chart([("a", [])], "x", "y")
    assert "no values" in line_chart([("a", [(math.nan, 1.0)])], "x", "y")
    bars = bar_chart(["s", "m"], [("a", [0.5, math.nan])], "share", ["3", "0"])
    assert bars.count("<rect") == 1 and "a, s: 0.500" in bars
    many = [(i, float(i % 7)) for i in range(10_000)]
    assert len(thinned(many)) <= MOST_POINTS and thinned(many[:5]) == many[:5]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(width, scheme, browser, both, tmp_path):
    """No errors, nothing from elsewhere, no sideways scrolling of the page, every picture there, every link works."""
    (tmp_path / "r.html").write_text(render([facts for facts, *_ in both]))
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{tmp_path / 'r.html'}")
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    links = page.locator("nav a")
    assert links.count() >= 10
    for index in range(links.count()):
        page.evaluate("window.scrollTo(0, 0)")
        links.nth(index).click()
        target = links.nth(index).get_attribute("href")
        assert page.evaluate("location.hash") == target
        box = page.locator(target).bounding_box()
        assert -1 <= box["y"] < 800
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    )
    assert min(sizes) > 0.8  # of a chart whose letters have 10.5 px: they can be read
    assert not said and all(url.startswith(("file:", "data:")) for url in asked)
    page.close()
