"""``ga-scope predict``: photos and videos in, pictures, JSON and CSV out."""

import csv
import json
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ga_scope import Detector
from ga_scope.cli.predict import main, split_overrides
from ga_scope.data.media import Photo, Video, VideoReader, VideoWriter, find_sources, read_photos
from ga_scope.errors import DatasetError
from ga_scope.prediction import JsonList, output_names

from .conftest import ENGINES, ROOT, config, overrides, random_weights

av = pytest.importorskip("av", reason="PyAV is not installed (the extra 'video')")


@pytest.fixture(scope="module")
def detector_options(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    everything = {"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    opts = overrides(shapes, folder, **everything)
    return random_weights("ga_faster_rcnn", opts, folder, classes=["a", "b", "c", "d", "e"])


@pytest.fixture(scope="module")
def clip(shapes, tmp_path_factory):
    """A video of 7 frames, 5 a second, of the validation images."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = VideoWriter(path, Fraction(5))
    for file in sorted((shapes / "val").glob("*.jpg"))[:7]:
        writer.add(Image.open(file).convert("RGB"))
    writer.close()
    return path


def run(inputs, output, opts, *flags, name="ga_faster_rcnn", engine="torchvision"):
    start = [*map(str, inputs), "--config-file", config(name), "--engine", engine, "--output", str(output)]
    main([*start, *map(str, flags), *opts])


def results(output):
    with open(output / "detections.csv") as file:
        rows = list(csv.DictReader(file))
    return json.loads((output / "detections.json").read_text()), json.loads((output / "images.json").read_text()), rows


# ---- what is read --------------------------------------------------------------------------------------


def save(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_files_folders_and_globs_give_each_file_once(tmp_path):
    a, b, c = (save(tmp_path / name) for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.webp"))
    save(tmp_path / ".hidden" / "d.jpg")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "e.mp4").write_bytes(b"")
    skipped = []
    found = find_sources([str(tmp_path), str(tmp_path / "**" / "*.webp"), str(a)], skipped.append)
    assert found == [
        Photo(str(a)),
        Video(str(tmp_path / "e.mp4"), str(tmp_path / "e.mp4")),
        Photo(str(b)),
        Photo(str(c)),
    ]
    assert len(skipped) == 1 and skipped[0].startswith(f"{tmp_path / 'notes.txt'}: cannot be read as an image")
    assert len(find_sources([str(tmp_path)], skipped.append, outside=[tmp_path / "sub"])) == 2
    assert skipped[-1] == f"{c}: lies where the results go"
    assert find_sources([str(c)], None, outside=[tmp_path / "sub"]) == [Photo(str(c))]


def test_addresses(tmp_path):
    found = find_sources(["rtsp://user:secret@host/x", "camera:2"], None)
    assert found == [
        Video("rtsp://host/x", "rtsp://user:secret@host/x", live=True),
        Video("camera:2", "/dev/video2", "v4l2", live=True),
    ]
    assert list(output_names(found).values()) == ["rtsp-host-x.mp4", "camera-2.mp4"]


def test_nothing_to_read_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="gone: no such file or folder, and no file matches it"):
        find_sources([str(tmp_path / "gone")], None)
    with pytest.raises(DatasetError, match="empty: expected images or videos, got none"):
        find_sources([str(tmp_path / "empty")], None)


def test_photos_are_read_in_order_and_broken_ones_are_named(tmp_path):
    files = [save(tmp_path / f"{i:02}.jpg", (20 + i, 30)) for i in range(20)]
    whole = files[7].read_bytes()
    files[7].write_bytes(whole[: len(whole) // 2])
    skipped = []
    found = list(read_photos([Photo(str(f)) for f in files], skipped.append))
    assert [record["width"] for record in found] == [20 + i for i in range(20) if i != 7]
    assert len(skipped) == 1 and "07.jpg" in skipped[0]


def test_frames_of_a_video(clip):
    reader = VideoReader(Video(str(clip), str(clip)))
    frames = list(reader)
    assert reader.length == len(frames) == 7 and reader.rate == 5
    assert [record["seconds"] for record in frames] == pytest.approx([i / 5 for i in range(7)])
    assert len({record["image_id"] for record in frames}) == 7
    reader = VideoReader(Video(str(clip), str(clip)), every=3)
    assert [record["frame"] for record in reader] == [0, 3, 6] and reader.length == 3 and reader.rate == Fraction(5, 3)
    assert len(list(VideoReader(Video(str(clip), str(clip)), every=2, most=2))) == 2


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError, match="x.mp4: cannot be opened as a video: "):
        VideoReader(Video(str(tmp_path / "x.mp4"), str(tmp_path / "x.mp4")))


def test_a_slow_model_sees_the_present(clip):
    """Of a live stream frames are left out, and the last that comes is the newest."""
    seen = []
    for record in VideoReader(Video(str(clip), str(clip), live=True)):
        seen.append(record["frame"])
        time.sleep(1)
    assert seen[-1] == 6 and len(seen) <= 2 and seen == sorted(seen)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Thread-") and thread.is_alive()]


# ---- what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, names",
    [
        (["a/1.jpg", "a/1.png", "a/2.jpg"], ["1.jpg", "1.png", "2.jpg"]),
        (["cam_a/0001.png", "cam_b/0001.png"], ["cam_a/0001.png", "cam_b/0001.png"]),
        (["/data/a/1.png", "/other/a/1.png"], ["data/a/1.png", "other/a/1.png"]),
        (["a/x", "a/x.png", "a/x.heic"], ["x.png", "x.2.png", "x.heic.png"]),
    ],
)
def test_no_two_pictures_have_one_name(files, names):
    assert list(output_names([Photo(file) for file in files]).values()) == names


def test_a_list_that_is_cut_off_is_not_there(tmp_path):
    written = JsonList(tmp_path / "x.json")
    written.add({"a": 1})
    assert not (tmp_path / "x.json").exists()
    written.close()
    assert json.loads((tmp_path / "x.json").read_text()) == [{"a": 1}]
    JsonList(tmp_path / "y.json", '{"b": ', "}").close()
    assert json.loads((tmp_path / "y.json").read_text()) == {"b": []}


@pytest.mark.parametrize("engine", ENGINES)
def test_photos_without_the_dataset(engine, shapes, detector_options, tmp_path, monkeypatch, capsys):
    """case_08: equal names in two folders. The files hold what the detector says, and COCO's own reader takes them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    files = sorted((shapes / "val").glob("*.jpg"))
    photos = tmp_path / "photos"
    for name, file in (("a/1.jpg", files[0]), ("b/1.jpg", files[1]), ("b/1.png", files[2])):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(photos / name)
    (photos / "readme.md").write_text("none")
    (photos / "broken.jpg").write_bytes((photos / "a/1.jpg").read_bytes()[:700])
    run([photos], tmp_path / "out", detector_options, "--score-thresh", 0, "--batch-size", 2, engine=engine)
    printed = capsys.readouterr()
    assert f"in 3 images, 2 files skipped -> {tmp_path / 'out'}" in printed.out
    assert "readme.md" in printed.out + printed.err and "broken.jpg" in printed.out + printed.err
    assert "3/" in printed.err and "image" in printed.err  # the progress
    detections, images, rows = results(tmp_path / "out")
    names = [image["file_name"] for image in images["images"]]
    assert names == [str(photos / n) for n in ("a/1.jpg", "b/1.jpg", "b/1.png")]
    assert [c["name"] for c in images["categories"]] == ["a", "b", "c", "d", "e"]
    expected = Detector(config("ga_faster_rcnn"), overrides=detector_options, engine=engine)(names)
    assert len(detections) == len(rows) == sum(len(e.boxes) for e in expected) > 0
    boxes = np.array([[float(row[k]) for k in ("x1", "y1", "x2", "y2")] for row in rows])
    np.testing.assert_allclose(boxes, np.concatenate([e.boxes.numpy() for e in expected]), atol=0.02)
    assert [row["class"] for row in rows] == [name for e in expected for name in e.names]
    assert [row["file"] for row in rows] == [n for n, e in zip(names, expected) for _ in e.boxes]
    coco = COCO(tmp_path / "out" / "images.json")
    assert len(coco.loadRes(str(tmp_path / "out" / "detections.json")).anns) == len(rows)
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png"):
        with Image.open(tmp_path / "out" / "pictures" / name) as drawn, Image.open(photos / name) as photo:
            assert drawn.size == photo.size
            assert np.abs(np.asarray(drawn).astype(int) - np.asarray(photo)).max() > 50
    assert not list((tmp_path / "out").rglob("*.part"))
    # Twice into the folder of the photos: what was written before is no photo.
    for flags in ([], ["--no-pictures"]):
        run([photos], photos / "out", detector_options, *flags)
        assert len(results(photos / "out")[1]["images"]) == 3


def test_a_photo_is_never_overwritten(tmp_path, detector_options):
    photo = save(tmp_path / "pictures" / "x.jpg")
    before = photo.read_bytes()
    with pytest.raises(DatasetError, match="x.jpg: expected an output folder that does not hold the photos"):
        run([photo], tmp_path, detector_options)
    assert photo.read_bytes() == before


def test_a_video(clip, detector_options, tmp_path):
    run([clip], tmp_path, detector_options, "--score-thresh", 0, "--every", 2, "--batch-size", 3)
    detections, images, rows = results(tmp_path)
    assert [image["frame"] for image in images["images"]] == [0, 2, 4, 6]
    assert {row["frame"] for row in rows} <= {"0", "2", "4", "6"} and len(rows) == len(detections) > 0
    reader = VideoReader(Video("x", str(tmp_path / "videos" / "clip.mp4")))
    assert reader.rate == Fraction(5, 2) and len(list(reader)) == 4
    assert not list(tmp_path.rglob("*.part.mp4"))


def test_limit_counts_photos_and_frames(clip, shapes, detector_options, tmp_path):
    files = sorted((shapes / "val").glob("*.jpg"))[:2]
    run([*files, clip], tmp_path, detector_options, "--limit", 5, "--no-pictures")
    assert [image.get("frame") for image in results(tmp_path)[1]["images"]] == [None, None, 0, 1, 2]


def test_a_damaged_video_among_others_is_named(clip, detector_options, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    run([clip, tmp_path / "bad.mp4"], tmp_path / "out", detector_options, "--no-pictures")
    printed = capsys.readouterr()
    assert "bad.mp4: cannot be opened as a video" in printed.out + printed.err and "1 files skipped" in printed.out
    with pytest.raises(DatasetError, match="bad.mp4: cannot be opened as a video"):
        run([tmp_path / "bad.mp4"], tmp_path / "out", detector_options)


@pytest.mark.parametrize("name", ["ga_rpn", "rpn", "scopenet", "retinanet", "ga_retinanet"])
def test_every_kind_of_model(name, shapes, tmp_path):
    """With the maps that each has; a proposal network's boxes are objects."""
    opts = overrides(shapes, tmp_path, **({"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.0} if "ga_" in name else {}))
    opts = random_weights(name, opts, tmp_path)
    photo = shapes / "val" / "000000.jpg"
    run([photo], tmp_path / "out", opts, "--maps", "--score-thresh", 0, name=name)
    _, _, rows = results(tmp_path / "out")
    assert rows and ("rpn" not in name or {row["class"] for row in rows} == {"object"})
    with Image.open(tmp_path / "out" / "pictures" / "000000.jpg.png") as image:
        assert image.width > 300


def test_overrides_begin_at_the_first_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["DSC_001.JPG", "--output", "o", "MODEL.WEIGHTS", "x.pth", "SEED", "1"]
    assert split_overrides(argv) == (argv[:3], argv[3:])
    (tmp_path / "TEST.JPG").write_text("")
    assert split_overrides(["TEST.JPG", "--output", "o"]) == (["TEST.JPG", "--output", "o"], [])
    assert split_overrides(["a", "--output", "o", "OUTPUT_DIR", "x"])[1] == ["OUTPUT_DIR", "x"]


def test_videos_without_pyav_say_what_to_install(clip, detector_options, tmp_path):
    (tmp_path / "av.py").write_text("raise ImportError")
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), str(clip), "--config-file", config("ga_faster_rcnn")]
    command += ["--engine", "torchvision", "--output", "out", *detector_options]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "DatasetError: videos and cameras need PyAV: pip install 'ga_scope[video]', or pip install av"
    )
