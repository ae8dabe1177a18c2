"""Datasets as sequences of dicts, several of them as one, and what their classes must have in common."""

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from ga_scope.data import Records, check_classes, load_coco_json
from ga_scope.data.dataset import Texts, dataset_of_records
from ga_scope.errors import DatasetError

NAMES = ("cat", "dog", "bird")


def write(folder, boxes, names=NAMES, numbers=None, sizes=None, name="a.json"):
    """A file with an image for each of the lists of (x, y, w, h, label); ``numbers`` are the categories' ids."""
    numbers = numbers or range(1, len(names) + 1)
    images, annotations = [], []
    for i, of_image in enumerate(boxes):
        width, height = sizes[i] if sizes else (60, 40)
        Image.new("RGB", (width, height)).save(folder / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height})
        for *box, label in of_image:
            annotations.append({"image_id": 10 + i, "bbox": box, "category_id": numbers[label]})
    categories = [{"id": number, "name": text} for number, text in zip(numbers, names)]
    path = folder / name
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_coco_json(path, folder, path.stem)


def labels(dataset):
    return [[a["category_id"] for a in record["annotations"]] for record in dataset]


BOXES = [[(1, 1, 5, 5, 0), (2, 2, 9, 9, 2)], [], [(3, 3, 4, 4, 1)]]


def test_a_dataset_is_a_sequence(tmp_path):
    dataset = write(tmp_path, BOXES)
    assert len(dataset) == 3 and labels(dataset) == [[0, 2], [], [1]]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            dataset[index]
    assert dataset[1]["ignore_boxes"].shape == (0, 4) and dataset.objects(1)[0].shape == (0, 4)
    assert dataset.with_objects().tolist() == [0, 2]


def test_the_first_images_are_a_dataset(tmp_path):
    dataset = write(tmp_path, BOXES)
    part = dataset.first(2)
    assert len(part) == 2 and list(map(str, part)) == list(map(str, list(dataset)[:2]))
    assert len(part.annotations) == 2 and part.with_objects().tolist() == [0] and part.classes == dataset.classes
    assert dataset.first(None) is dataset and dataset.first(3) is dataset and dataset.first(99) is dataset
    assert len(dataset.first(0)) == 0
    outlined = load_coco_json(tmp_path / "a.json", tmp_path, extras=True).first(1)
    assert len(outlined.annotations.extras) == 2


def test_several_datasets_as_one(tmp_path):
    (tmp_path / "b").mkdir()
    first = write(tmp_path, BOXES, sizes=[(60, 40), (40, 60), (40, 40)])
    second = write(tmp_path / "b", [[(1, 1, 2, 2, 1)], []], sizes=[(50, 60), (90, 10)])
    everything = Records([first, second])
    assert labels(everything) == [[0, 2], [], [1], [1], []] and everything.wide().tolist() == [True, *[False] * 3, True]
    useful = Records([first, second], with_objects=True)
    assert labels(useful) == [[0, 2], [1], [1]] and useful.wide().tolist() == [True, False, False]
    assert useful[2]["file_name"] == str(tmp_path / "b" / "0.png")
    with pytest.raises(IndexError):
        useful[3]


def test_a_worker_gets_arrays_and_no_lists(tmp_path):
    """A list of a million str or dicts is copied by every worker, reference count by reference count."""
    dataset = write(tmp_path, BOXES * 20)
    assert all(isinstance(v, np.ndarray) for k, v in vars(dataset.annotations).items() if k != "extras")
    assert isinstance(dataset.file_names, Texts) and isinstance(dataset.image_ids, np.ndarray)
    again = pickle.loads(pickle.dumps(Records([dataset])))
    assert labels(again) == labels(dataset)


def test_texts():
    texts = ["a", "", "ä/漢字.png", "b" * 1000]
    packed = Texts(texts)
    assert list(packed) == texts and len(packed) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError):
            packed[index]
    assert len(Texts([])) == 0


# ---- A4: classes -------------------------------------------------------------------------------------


def test_numbers_of_classes_may_differ(tmp_path):
    """The same names in the order of their numbers: the labels are the same."""
    first = write(tmp_path, BOXES)
    second = write(tmp_path, BOXES, numbers=(2, 30, 400), name="b.json")
    assert first.category_ids != second.category_ids and labels(first) == labels(second)
    check_classes([first, second], [second])
    check_classes([], [first, second])
    check_classes([], [])


@pytest.mark.parametrize(
    "names, numbers, message",
    [
        (("dog", "cat", "bird"), None, "number 0 is 'cat', got 'dog' (the same names in another order)"),
        (NAMES, (1, 3, 2), "number 1 is 'dog', got 'bird' (the same names in another order)"),
        (("cat", "dog", "fish"), None, "number 2 is 'bird', got 'fish'"),
        (("cat", "Dog", "bird"), None, "number 1 is 'dog', got 'Dog'"),
        (("cat", "dog"), None, "number 2 is 'bird', got None"),
        (("cat", "dog", "bird", "fish"), None, "number 3 is None, got 'fish'"),
    ],
)
def test_other_names_or_another_order_are_an_error(tmp_path, names, numbers, message):
    """Between training sets, and for a test set."""
    first = write(tmp_path, [[]])
    other = write(tmp_path, [[]], names, numbers, name="b.json")
    text = f"{tmp_path}/b.json: classes: expected those of {tmp_path}/a.json, of which {message}"
    for sets in (([first, other], []), ([first], [other]), ([first, first], [first, other]), ([], [first, other])):
        with pytest.raises(DatasetError) as error:
            check_classes(*sets)
        assert str(error.value).endswith(message) and str(error.value) == text


# ---- A5: functions -----------------------------------------------------------------------------------


def record(image_id=1, **more):
    return {"file_name": "x.png", "height": 40, "width": 60, "image_id": image_id} | more


def item(*box, label=0, **more):
    return {"bbox": list(box), "category_id": label} | more


def test_a_dataset_of_dicts(caplog):
    annotations = [item(1, 1, 5, 5), item(2, 2, 9, 9, label=1, iscrowd=1), item(4, 4, 9, 9, ignore=1, area=7)]
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of_records("mine", [record(7, annotations=annotations), record("b")], ["cat", "dog"])
    assert dataset.classes == ("cat", "dog") and dataset.annotated and dataset.source is None
    first, second = dataset
    assert [a["bbox"] for a in first["annotations"]] == [[1, 1, 5, 5]] and first["image_id"] == 7
    assert first["ignore_boxes"].tolist() == [[2, 2, 11, 11], [4, 4, 13, 13]]
    assert second["annotations"] == [] and second["image_id"] == "b"
    assert dataset.annotations.areas.tolist() == [25, 81, 7] and caplog.messages == []


def test_dirty_dicts_are_cleaned_like_files(caplog):
    items = [item(1, 1, 0, 5), item(90, 1, 5, 5), item(-5, 1, 10, 5), item(1, 1, 5, 5), item(1, 1, 5, 5)]
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of_records("mine", [record(annotations=items)], ["cat"])
    assert [a["bbox"] for a in dataset[0]["annotations"]] == [[0, 1, 5, 5], [1, 1, 5, 5]]
    assert caplog.messages == [
        "mine: of 5 annotations: 1 with a box across the border (clipped); 1 with a box of zero or negative size (left "
        "out); 1 with a box outside the image (left out); 1 with an object that is there twice (left out)"
    ]


def test_dicts_of_numpy_and_paths(tmp_path):
    """What functions give in fact: numbers of numpy, Path, run lengths of pycocotools."""
    outline = {"counts": b"PPYo0", "size": [40, 60]}
    items = [item(*np.array([1, 1, 5, 5], dtype=np.float32), label=np.int64(1), segmentation=outline)]
    items.append(item(2, 2, 9, 9, segmentation=[np.array([1.0, 2, 3, 4, 5, 6])]))
    given = record(np.int64(3), file_name=tmp_path / "x.png", height=np.int32(40), annotations=items)
    (found,) = dataset_of_records("mine", [given], ["cat", "dog"], extras=True)
    assert found["file_name"] == str(tmp_path / "x.png") and found["image_id"] == 3 and type(found["image_id"]) is int
    assert [a["category_id"] for a in found["annotations"]] == [1, 0]
    outlines = [a["segmentation"] for a in found["annotations"]]
    assert outlines == [{"counts": "PPYo0", "size": [40, 60]}, [[1, 2, 3, 4, 5, 6]]]


def test_classes_without_names_are_numbers():
    found = dataset_of_records("mine", [record(annotations=[item(1, 1, 5, 5, label=2)])], None)
    assert found.classes == ("0", "1", "2")
    assert dataset_of_records("mine", [record()], None).classes == ()


@pytest.mark.parametrize("key", ["file_name", "height", "width", "image_id"])
def test_dicts_need_their_keys(key):
    wrong = record()
    del wrong[key]
    with pytest.raises(DatasetError, match=f"mine: image 1: expected '{key}' in every dict, got "):
        dataset_of_records("mine", [record(), wrong], ["cat"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"annotations": [item(1, 1, 5)]}, r"image 1: annotations\[0\]: bbox: expected four finite numbers, got"),
        ({"annotations": [item(1, 1, float("nan"), 5)]}, r"image 1: annotations\[0\]: bbox: expected four finite"),
        ({"annotations": [{"category_id": 0}]}, r"image 1: annotations\[0\]: bbox: expected four finite numbers, got"),
        ({"annotations": [item(1, 1, 5, 5, label=2)]}, r"image 1: annotations\[0\]: category_id: expected .* 0 to 1"),
        ({"annotations": [item(1, 1, 5, 5, label=-1)]}, r"image 1: annotations\[0\]: category_id: expected .* 0 to 1"),
        ({"annotations": [item(1, 1, 5, 5, label="cat")]}, r"image 1: annotations\[0\]: category_id: expected"),
        ({"annotations": None}, r"image 1: annotations: expected a list, got None"),
        ({"height": None}, r"image 1: height: expected a positive number of pixels, got None"),
        ({"width": 0}, r"image 1: width: expected a positive number of pixels, got 0"),
        ({"height": 40.5}, r"image 1: height: expected a positive number of pixels, got 40.5"),
        ({"file_name": None}, r"image 1: file_name: expected the name of a file, got None"),
        ({"image_id": None}, r"image 1: image_id: expected a whole number or text, got None"),
        ({"image_id": 1}, r"image 1: image_id: expected another than image 0 has, got 1"),
    ],
)
def test_wrong_dicts_are_named(wrong, message):
    with pytest.raises(DatasetError, match=f"mine: {message}"):
        dataset_of_records("mine", [record(1), record(2) | wrong], ["cat", "dog"])
