"""Photos, videos and cameras as a stream of dataset dicts that hold their pixels."""

import glob
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

from ..errors import DatasetError
from .images import image_record, open_image

VIDEO_EXTENSIONS = frozenset(
    {".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_CAMERA = re.compile(r"camera:(\d+)")
READ_AHEAD = 8  # images in memory that wait for the model


@dataclass(frozen=True)
class Photo:
    """An image file."""

    path: str


@dataclass(frozen=True)
class Video:
    """A video file; or, ``live``, a camera or a stream, which has no length and whose late frames are of no use.

    Attributes:
        name: as it was given.
        source, format: what libav opens.
    """

    name: str
    source: str
    format: str | None = None
    live: bool = False


Source = Photo | Video


def find_sources(inputs: Iterable[str], skip: Callable[[str], None], outside: Iterable[Path] = ()) -> list[Source]:
    """Photos and videos of files, folders, globs (``**`` as well) and addresses (rtsp://..., camera:0), each file once.

    Args:
        skip: is told, in one line each, of the files that are neither.
        outside: folders whose files count only if they are named themselves: what an earlier run wrote.

    Raises:
        DatasetError: an input that does not exist, or nothing that can be read.
    """
    found: dict[str, Source] = {}
    inputs, outside = [os.fspath(value) for value in inputs], [folder.resolve() for folder in outside]
    for value in inputs:
        camera = _CAMERA.fullmatch(value)
        if camera:
            found[value] = Video(value, f"/dev/video{camera[1]}", "v4l2", live=True)
        elif _ADDRESS.match(value):
            found[value] = Video(_without_secrets(value), value, live=True)
        else:
            for path in _files(value):
                if path != Path(value).expanduser() and any(path.resolve().is_relative_to(f) for f in outside):
                    skip(f"{path}: lies where the results go")
                    continue
                if path.suffix.lower() in VIDEO_EXTENSIONS:
                    found.setdefault(str(path.resolve()), Video(str(path), str(path)))
                    continue
                try:
                    image_record(path)
                    found.setdefault(str(path.resolve()), Photo(str(path)))
                except DatasetError as error:
                    skip(str(error))
    if not found:
        raise DatasetError(f"{', '.join(inputs)}: expected images or videos, got none")
    return list(found.values())


def _files(value: str) -> list[Path]:
    """The files of a path or a glob, in order of their names; of a folder all that it holds, folders in it as well."""
    path = Path(value).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
    if path.exists():
        return [path]
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    if not matches:
        raise DatasetError(f"{value}: no such file or folder, and no file matches it")
    return matches


def _without_secrets(address: str) -> str:
    """Without the user and the password, which would otherwise stand in every result."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# ---- photos ----------------------------------------------------------------------------------------


def read_photos(photos: Iterable[Photo], skip: Callable[[str], None], threads: int = 2) -> Iterator[dict]:
    """Dicts with ``pixels``, in order; threads read a few images ahead of the model.

    Args:
        skip: is told of files whose pixels cannot be read.
    """
    photos = iter(photos)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(_read, photo) for photo in islice(photos, READ_AHEAD))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(_read, photo) for photo in islice(photos, 1))
            if isinstance(result, DatasetError):
                skip(str(result))
            else:
                yield result


def _read(photo: Photo) -> dict | DatasetError:
    try:
        image = open_image(photo.path)
    except DatasetError as error:
        return error
    return frame_record(photo.path, image)


def frame_record(name: str, image, frame: int | None = None, seconds: float | None = None) -> dict:
    """A dataset dict of an image in memory; ``frame`` and ``seconds`` say where it stands in a video."""
    return {
        "file_name": name, "image_id": name if frame is None else f"{name}#{frame}", "height": image.height,
        "width": image.width, "pixels": image, "frame": frame, "seconds": seconds,
    }  # fmt: skip


# ---- videos ----------------------------------------------------------------------------------------


def _av():
    try:
        import av
    except ImportError:
        raise DatasetError("videos and cameras need PyAV: pip install 'ga_scope[video]', or pip install av") from None
    return av


class VideoReader:
    """The frames of a video, upright, as dataset dicts with ``pixels``.

    Attributes:
        rate: frames per second of those that are given.
        length: how many there will be, as far as the file knows; None for streams.

    Args:
        every: give each so-many-th frame.
        most: stop after so many.

    Raises:
        DatasetError: PyAV is not installed, or the video cannot be opened.
    """

    def __init__(self, video: Video, every: int = 1, most: int | None = None):
        self.video, self.every, self.most, av = video, every, most, _av()
        try:
            self.container = av.open(video.source, format=video.format)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DatasetError(f"{video.name}: cannot be opened as a video: {_words(error)}") from None
        if not self.container.streams.video:
            self.container.close()
            raise DatasetError(f"{video.name}: expected a video, got none of its tracks")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = (self.stream.average_rate or self.stream.guessed_rate or Fraction(25)) / every
        self.length = self._length()

    def _length(self) -> int | None:
        if self.video.live:
            return self.most
        frames = self.stream.frames
        if not frames and self.container.duration:
            frames = round(self.container.duration / 1e6 * float(self.rate * self.every))
        frames = -(-frames // self.every) or None
        return frames if self.most is None or frames is None else min(frames, self.most)

    def __iter__(self) -> Iterator[dict]:
        av, given = _av(), 0
        numbered = enumerate(self.container.decode(self.stream))
        chosen = (pair for pair in numbered if pair[0] % self.every == 0)
        try:
            for number, frame in islice(_newest(chosen) if self.video.live else chosen, self.most):
                image = frame.to_image()
                turn = int(getattr(frame, "rotation", 0) or 0) % 360
                given += 1
                seconds = None if frame.time is None else float(frame.time)
                yield frame_record(self.video.name, image.rotate(turn, expand=True) if turn else image, number, seconds)
        except (av.FFmpegError, OSError) as error:
            if not given:
                raise DatasetError(f"{self.video.name}: cannot be read as a video: {_words(error)}") from None
            # A damaged end, a camera that was unplugged: what came before it counts.
            raise VideoEnded(f"{self.video.name}: ended after {given} frames: {_words(error)}") from None

    def close(self):
        self.container.close()


def _newest(items: Iterator) -> Iterator:
    """Reads on while nobody asks, and gives the newest that there is: a slow model so sees the present."""
    slot, changed, ended = [], threading.Condition(), []

    def read():
        error = None
        try:
            for item in items:
                with changed:
                    if ended:
                        return
                    slot[:] = [item]
                    changed.notify()
        except Exception as caught:  # given to the one who asks
            error = caught
        with changed:
            ended.append(error)
            changed.notify()

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: slot or ended)
                if not slot:
                    if ended[0] is not None:
                        raise ended[0]
                    return
                item = slot.pop()
            yield item
    finally:
        with changed:
            ended.append(None)


class VideoEnded(DatasetError):
    """A video that cannot be read any further."""


def _words(error) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class VideoWriter:
    """An .mp4 (H.264) that plays anywhere; there under its name only when it is whole.

    Args:
        rate: frames per second.
    """

    def __init__(self, path, rate: Fraction):
        self.path, av = Path(path), _av()
        self.partial = self.path.with_name(f"{self.path.stem}.part.mp4")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.container = av.open(str(self.partial), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=Fraction(rate).limit_denominator(10000))
        self.stream.pix_fmt = "yuv420p"
        self.size = None

    def add(self, image):
        """A frame; its sides are cut to even numbers, which the format asks for, and to those of the first."""
        av = _av()
        if self.size is None:
            self.size = (max(image.width // 2 * 2, 2), max(image.height // 2 * 2, 2))
            self.stream.width, self.stream.height = self.size
        if image.size != self.size:
            image = image.crop((0, 0, *self.size))
        self.container.mux(self.stream.encode(av.VideoFrame.from_image(image)))

    def close(self):
        if self.size is not None:
            self.container.mux(self.stream.encode())
        self.container.close()
        if self.size is None:
            self.partial.unlink(missing_ok=True)
        else:
            self.partial.replace(self.path)
