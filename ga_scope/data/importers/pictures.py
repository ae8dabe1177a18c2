"""What an image file is: its upright size, how EXIF turns it, and whether it can be decoded."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...untrusted import check_file
from ..images import ORIENTATION, PHOTO_FORMATS

FORMATS = {
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".jpe": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".bmp": {"BMP"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".webp": {"WEBP"},
    ".gif": {"GIF"},
    ".ppm": {"PPM"},
    ".pgm": {"PPM"},
    ".jp2": {"JPEG2000"},
}


@dataclass(frozen=True)
class Picture:
    """Facts of an image file. Sizes are (width, height)."""

    stored: tuple[int, int]
    orientation: int  # EXIF's, 1 to 8
    mode: str
    format: str
    digest: str  # of the file's bytes

    @property
    def size(self) -> tuple[int, int]:
        """The upright size."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def upright(self, x: float, y: float) -> tuple[float, float]:
        """A point of the stored image in the upright one."""
        w, h = self.stored
        return {
            1: (x, y),
            2: (w - x, y),
            3: (w - x, h - y),
            4: (x, h - y),
            5: (y, x),
            6: (h - y, x),
            7: (h - y, w - x),
            8: (y, w - x),
        }[self.orientation]


def read_picture(path: Path) -> Picture:
    """Facts of an image file, which is decoded once so that a truncated one is found now.

    Raises:
        ValueError: it cannot be read; the message says why, not which.
    """
    try:
        check_file(path)
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=PHOTO_FORMATS) as image:
                stored, mode, kind = image.size, image.mode, image.format
                try:
                    orientation = image.getexif().get(ORIENTATION, 1)
                except Exception:  # broken EXIF turns nothing, as in PIL's own exif_transpose
                    orientation = 1
                image.draft("L", (stored[0] // 8, stored[1] // 8))  # JPEG: all of it is parsed, little computed
                image.load()
    except Exception as error:  # PIL raises many kinds for broken files
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    return Picture(stored, orientation, mode, kind, hashlib.sha256(content).hexdigest())


def has_format_of_name(path: Path, picture: Picture) -> bool:
    """Whether the file is of the format that its name ends in."""
    return picture.format in FORMATS.get(path.suffix.lower(), {picture.format})
