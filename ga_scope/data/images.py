"""Image files as the networks see them: upright, 8 bits, three channels."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import DatasetError
from ..untrusted import check_file

# Pillow's modes of 16 bits a pixel. A network is trained on 8: the brightest of either is 255.
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 turn by a quarter

# Numbers without a range of their own: nobody knows what is white.
UNBOUNDED = {"I": "32-bit integers", "F": "floating-point numbers"}


# Of Pillow's formats those of photos. Others hand a file to programs of the system (EPS, to Ghostscript).
PHOTO_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")


@contextlib.contextmanager
def _opened(path) -> Iterator[Image.Image]:
    check_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF data that are broken: such an image stands as it is
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=PHOTO_FORMATS) as file:
            yield file


def open_image(path) -> Image.Image:
    """An image file, upright, as RGB: turned as its EXIF data say, 16 bits scaled to 8, transparency left out.

    Raises:
        DatasetError: naming the file: missing, broken, too large to be meant, or of pixels that have no range.
    """
    try:
        with _opened(path) as file:
            return upright_rgb(file, path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such image") from None
    except DatasetError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files, none with the name
        raise DatasetError(f"{path}: cannot be read as an image: {error or type(error).__name__}") from None


def upright_rgb(image: Image.Image, name="image") -> Image.Image:
    """An image as :func:`open_image` gives it.

    Raises:
        DatasetError: naming it.
    """
    try:
        return to_rgb(_upright(image), name)
    except DatasetError:
        raise
    except (OSError, ValueError) as error:  # a broken file that nobody has read yet, a mode without a way to RGB
        raise DatasetError(f"{name}: cannot be read as an image: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_rgb(image: Image.Image, name="image") -> Image.Image:
    """An upright image as 8-bit RGB (:func:`open_image`)."""
    if image.mode in SIXTEEN_BITS:
        pixels = np.asarray(image).astype(np.float32) * (255 / 65535)
        image = Image.fromarray(np.rint(pixels).astype(np.uint8))
    elif image.mode in UNBOUNDED:
        raise DatasetError(
            f"{name}: expected pixels of 8 or 16 bits, got {UNBOUNDED[image.mode]}, of which nobody knows what is "
            "white: convert it first"
        )
    return image.convert("RGB")


def read_image(record: dict) -> Image.Image:
    """The image of a dataset dict (:func:`open_image`), of the size that the annotations say.

    A dict of no file holds the image itself, ``pixels``, upright RGB.

    Raises:
        DatasetError: naming the file.
    """
    if "pixels" in record:
        return record["pixels"]
    name = record["file_name"]
    image = open_image(name)
    if image.size != (record["width"], record["height"]):
        raise DatasetError(
            f"{name}: expected {record['width']} x {record['height']} pixels (the annotations), "
            f"got {image.size[0]} x {image.size[1]}"
        )
    return image


def image_record(path) -> dict:
    """A dataset dict for an image file of no dataset. Of the file only the header is read.

    Raises:
        DatasetError: it is no image.
    """
    try:
        with _opened(path) as file:
            width, height = file.size
            turned = file.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such image") from None
    except Exception as error:  # Pillow raises many kinds for what is no image, none with the name
        raise DatasetError(f"{path}: cannot be read as an image: {error or type(error).__name__}") from None
    if turned:
        width, height = height, width
    return {"file_name": str(path), "image_id": Path(path).name, "height": height, "width": width}


def resized_shape(height: int, width: int, short_side: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side ``short_side`` (0: as they are), unless the longer exceeds ``longest``;
    at least one pixel.
    """
    if short_side == 0:
        return height, width
    scale = short_side / min(height, width)
    new = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new) > longest:
        new = tuple(side * (longest / max(new)) for side in new)
    return max(int(new[0] + 0.5), 1), max(int(new[1] + 0.5), 1)


def to_network(image: Image.Image, height: int, width: int, channel_order: str) -> np.ndarray:
    """An RGB image, resized, as (3, height, width) uint8 in INPUT.FORMAT."""
    pixels = np.asarray(image.resize((width, height), Image.BILINEAR))
    if channel_order == "BGR":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
