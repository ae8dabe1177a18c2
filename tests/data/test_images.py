"""Image files as the networks see them: every kind of pixel used rightly, or refused with the file's name."""

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ga_scope.data import image_record, open_image, read_image
from ga_scope.data.images import resized_shape, to_network
from ga_scope.errors import DatasetError

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)


def saved(folder, image, name="x.png", **options):
    image.save(folder / name, **options)
    return folder / name


def pixels(path):
    found = np.asarray(open_image(path))
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    return found


# ---- A7: depths of pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled_to_eight(name, tmp_path):
    """65535 is white, whatever is brightest in the file: 12 of 16 bits stay dark, as they are in another viewer."""
    eight = np.rint(RAMP * 255).astype(np.uint8)
    found = pixels(saved(tmp_path, Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)), name))
    assert np.abs(found.astype(int) - eight[..., None]).max() <= 1 and found.min() == 0 and found.max() == 255
    assert len(np.unique(found)) == 64
    dark = pixels(saved(tmp_path, Image.fromarray(np.rint(RAMP * 4095).astype(np.uint16)), name))
    assert dark.max() == 16 and len(np.unique(dark)) == 17


@pytest.mark.parametrize("name, order", [("x.tif", "<"), ("x.tif", ">")])
def test_both_orders_of_bytes(name, order, tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=f"{order}u2")
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (4, 1), values.tobytes())
    assert pixels(saved(tmp_path, image, name))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_picture_of_eight_bits_is_the_same_in_sixteen(tmp_path):
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = [pixels(saved(tmp_path, Image.fromarray(a))) for a in (eight, eight.astype(np.uint16) * 257)]
    assert np.array_equal(*found) and np.array_equal(found[0][..., 0], eight)


@pytest.mark.parametrize(
    "array, kind",
    [(RAMP.astype(np.float32), "floating-point numbers"), ((RAMP * 1e6).astype(np.int32), "32-bit integers")],
)
def test_pixels_without_a_range_are_refused(array, kind, tmp_path):
    """Saturated without a word they would be black, or white."""
    path = saved(tmp_path, Image.fromarray(array), "x.tif")
    with pytest.raises(DatasetError, match=f"x.tif: expected pixels of 8 or 16 bits, got {kind}, .*: convert it first"):
        open_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode, tmp_path):
    colour = Image.new("RGB", (8, 6), (200, 200, 200))
    colour = colour.quantize() if mode == "P" else colour.convert(mode)
    name = {"CMYK": "x.tif", "YCbCr": "x.jpg"}.get(mode, "x.png")
    found = pixels(saved(tmp_path, colour, name))
    expected = 255 if mode == "1" else 200
    assert found.shape == (6, 8, 3)
    if mode == "1":  # dithered
        assert set(np.unique(found)) <= {0, expected}
    else:
        assert np.abs(found.astype(int) - expected).max() <= 3


def test_transparency_is_left_out(tmp_path):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert pixels(saved(tmp_path, image))[0, 0].tolist() == [10, 20, 30]


# ---- upright -----------------------------------------------------------------------------------------


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation, tmp_path):
    """Read, counted in the header, and through a dataset dict: turned as the EXIF data say."""
    image = Image.new("RGB", (40, 24))
    image.paste((255, 0, 0), (0, 0, 8, 8))  # a corner to know it by
    path = saved(tmp_path, image, "x.png", exif=exif(orientation))
    found = np.asarray(open_image(path))
    turned = orientation >= 5
    assert found.shape[:2] == ((40, 24) if turned else (24, 40))
    rows, columns = np.nonzero(found[..., 0] > 128)
    corner = (rows.mean() < found.shape[0] / 2, columns.mean() < found.shape[1] / 2)  # top, left
    # What each tag says of the file's first row and column (TIFF 6.0, Orientation).
    where = {1: (1, 1), 2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}
    assert corner == tuple(map(bool, where[orientation]))
    record = image_record(path)
    assert (record["height"], record["width"]) == found.shape[:2] and record["image_id"] == "x.png"
    assert np.array_equal(np.asarray(read_image(record)), found)


@pytest.mark.parametrize("value", ["upright", (1, 2), 0, 9, b"\xff", 6.5])
def test_an_orientation_that_is_none_is_none(value, tmp_path):
    """A tag of the wrong type: the file is still an image."""
    image, info = Image.new("RGB", (40, 24)), TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = value
    info.tagtype[0x0112] = {str: 2, bytes: 7, float: 12}.get(type(value), 3)
    path = saved(tmp_path, image, "x.tif", tiffinfo=info)
    record = image_record(path)
    assert (record["height"], record["width"]) == (24, 40) and read_image(record).size == (40, 24)


# ---- broken files ------------------------------------------------------------------------------------


def test_broken_images_are_named(tmp_path):
    path = saved(tmp_path, Image.fromarray((RAMP * 255).astype(np.uint8)), "a.png")
    record = image_record(path)
    with pytest.raises(DatasetError, match=r"a.png: expected 60 x 48 pixels \(the annotations\), got 64 x 48"):
        read_image(record | {"width": 60})
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="a.png: cannot be read as an image") as error:
            read_image(record)
        assert "\n" not in str(error.value)
    for function in (open_image, image_record):
        with pytest.raises(DatasetError, match="b.png: no such image"):
            function(tmp_path / "b.png")
        with pytest.raises(DatasetError, match=f"{tmp_path}: cannot be read as an image"):
            function(tmp_path)


def test_bombs_are_refused(tmp_path, monkeypatch):
    """A file of a few bytes that claims to be larger than memory."""
    path = saved(tmp_path, Image.new("L", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DatasetError, match="x.png: cannot be read as an image: .*bomb"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # Pillow itself only warns
    with pytest.raises(DatasetError, match="x.png: cannot be read as an image: .*bomb"):
        open_image(path)


# ---- for the network ---------------------------------------------------------------------------------


def test_resized_shape():
    assert resized_shape(480, 640, 800, 1333) == (800, 1067)
    assert resized_shape(300, 900, 800, 1333) == (444, 1333)
    assert resized_shape(20, 20, 800, 1333) == (800, 800)
    assert resized_shape(20, 30, 0, 1333) == (20, 30)


@pytest.mark.parametrize("height, width", [(1, 5000), (5000, 1), (1, 1), (2, 9999)])
def test_no_image_shrinks_to_nothing(height, width):
    """One pixel at least, however thin it is."""
    found = resized_shape(height, width, 800, 1333)
    assert min(found) >= 1 and max(found) <= 1333


def test_resizing_is_detectron2s():
    pytest.importorskip("detectron2")
    from detectron2.data import transforms as T

    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 3000, 2).tolist()
        short, longest = int(rng.integers(1, 1000)), int(rng.integers(100, 1400))
        expected = T.ResizeShortestEdge.get_output_shape(height, width, short, longest)
        assert resized_shape(height, width, short, longest) == tuple(max(side, 1) for side in expected)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_order_of_channels(order):
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    found = to_network(image, 12, 4, order)
    assert found.shape == (3, 12, 4) and found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"]
    assert found[:, 0, 0].tolist() == ([10, 20, 30] if order == "RGB" else [30, 20, 10])
