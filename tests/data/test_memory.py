"""A tenth of COCO's training set: what parsing it takes in time and memory, and what a loader's process adds."""

import json
import random
import subprocess
import sys

import pytest

IMAGES, ANNOTATIONS = 11_829, 86_000

MEASURED = """
import json, os, re, sys, time

def status(name, file="/proc/self/status"):
    return sum(int(kb) for kb in re.findall(rf"^{name}:\\s+(\\d+) kB", open(file).read(), re.M)) * 1024

from ga_scope.data import Records, load_coco_json
before, began = status("VmRSS"), time.process_time()
dataset = load_coco_json(sys.argv[1], sys.argv[2])
seconds, resident, peak = time.process_time() - began, status("VmRSS") - before, status("VmHWM") - before
records = Records([dataset], with_objects=True)

def walk():
    found = 0
    for i in range(len(records)):
        found += len(records[i]["annotations"])
    return found

reading, writing = os.pipe()
if os.fork() == 0:  # as a loader's process
    private = lambda: status("Private_(?:Clean|Dirty)", "/proc/self/smaps_rollup")
    records[0]
    start = private()
    walk()
    os.write(writing, str(private() - start).encode())
    os._exit(0)
added = int(os.read(reading, 100))
os.wait()
print(json.dumps({"seconds": seconds, "resident": resident, "peak": peak, "worker": added, "found": walk()}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("tenth"), random.Random(0)
    (folder / "im").mkdir()
    images = []
    for i in range(IMAGES):
        name = f"{i:012d}.jpg"
        (folder / "im" / name).touch()
        more = {"license": 3, "coco_url": f"http://images.cocodataset.org/train2017/{name}", "flickr_url": "x" * 60}
        images.append({"id": i, "file_name": name, "height": 480, "width": 640, "date_captured": "2013-11-14"} | more)
    annotations = []
    for i in range(ANNOTATIONS):
        box = [round(rng.uniform(5, 200), 2) for _ in range(4)]
        outline = [round(rng.uniform(0, 400), 2) for _ in range(48)]
        annotation = {"segmentation": [outline], "area": round(box[2] * box[3], 3), "iscrowd": 0, "bbox": box}
        annotations.append(annotation | {"image_id": rng.randrange(IMAGES), "category_id": i % 80 + 1, "id": i + 1})
    categories = [{"id": i + 1, "name": f"c{i}", "supercategory": "x"} for i in range(80)]
    path = folder / "ann.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    command = [sys.executable, "-c", MEASURED, str(path), str(folder / "im")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"file": path.stat().st_size}


def test_everything_is_there(measured):
    assert measured["found"] == ANNOTATIONS


def test_memory_after_parsing(measured):
    """So much that COCO's 860,000 annotations stay below 350 MB. Two thirds are what the allocator keeps."""
    assert measured["resident"] < 400 * ANNOTATIONS, measured


def test_memory_while_parsing(measured):
    """The text of the file and a few words for every entry: COCO's training set within a gigabyte."""
    assert measured["peak"] < measured["file"] + 300 * ANNOTATIONS, measured


def test_a_workers_memory(measured):
    """What a process writes to is its own: a list of dicts would become so entry by entry."""
    assert measured["worker"] < 8e6, measured


def test_time(measured):
    """Of one core, on a slow machine; 15 s for COCO's training set are 1.5 s here."""
    assert measured["seconds"] < 4, measured
