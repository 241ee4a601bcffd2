"""Handwritten digits and their siblings (fashion, kuzushiji, letters) from the published files, checked by digest at every load.

Folders are laid out as torchvision does (`MNIST/raw/train-images-idx3-ubyte`, ...), and so are the addresses and digests of the
downloads. Files are looked for in `--data-dir`, else in CNN425_DATA_DIR; without either they are downloaded once into a cache folder of
the user. As in torchvision, a folder that was named is only written to if `--download` says so.
"""

import contextlib
import gzip
import hashlib
import io
import os
import struct
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal, NamedTuple

import numpy
import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cnn425.lab.errors import LabError, expanded, first_line, sentence
from cnn425.lab.folder import LOCK, if_able, sweep, write_whole
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import in_a_shell, watched

Dataset = Literal["mnist", "fashion", "kmnist", "emnist-letters", "qmnist"]

DIGITS = tuple("0123456789")
UNPACKED = {  # md5 of MNIST's four files as torchvision unpacks them
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
ATTEMPTS, TIMEOUT_SECONDS, BACKOFF_SECONDS, PIECE = 3, 20.0, 1.0, 1 << 18
SLOWEST = 4096  # bytes per second, on average, below which a download is given up


class Part(NamedTuple):
    """One published file: name, md5, where to get it; `unpacked` is the md5 of the same file without `.gz`, where known."""

    file: str
    md5: str
    addresses: tuple[str, ...]
    unpacked: str | None = None


class Source(NamedTuple):
    """A data set as published: folder, files (images and labels for training, the same for testing; or one archive), classes."""

    folder: str
    parts: tuple[Part, ...]
    classes: tuple[str, ...]


def source(dataset: Dataset) -> Source:
    """Where a data set comes from, from torchvision's own tables."""
    from torchvision import datasets  # takes seconds, so only when digits are read

    if dataset == "emnist-letters":
        archive = Part("gzip.zip", datasets.EMNIST.md5, (datasets.EMNIST.url,))
        return Source("EMNIST/raw", (archive,), tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    if dataset == "qmnist":
        files = [*datasets.QMNIST.resources["train"], *datasets.QMNIST.resources["test"]]
        return Source("QMNIST/raw", tuple(Part(url.rsplit("/", 1)[1], md5, (url,)) for url, md5 in files), DIGITS)
    kind = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[dataset]
    parts = tuple(
        Part(file, md5, tuple(mirror + file for mirror in kind.mirrors), UNPACKED.get(file[:-3]) if dataset == "mnist" else None)
        for file, md5 in kind.resources
    )
    return Source(f"{kind.__name__}/raw", parts, DIGITS if dataset == "mnist" else tuple(c.split(" - ")[-1] for c in kind.classes))


def place(data_dir: Path | None) -> tuple[Path, bool]:
    """The folder that holds data sets, and whether it is the cache, into which missing files are downloaded."""
    given = data_dir or os.environ.get("CNN425_DATA_DIR")
    return (expanded(given), False) if given else (place_of_cache(), True)


def md5(content: bytes) -> str:
    """The digest by which torchvision knows a file."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def load(dataset: Dataset = "mnist", data_dir: Path | None = None, download: bool = False) -> tuple[Pictures, Pictures]:
    """The training and the test pictures, whole, in memory: images `(examples, 1, 28, 28)`, uint8."""
    where, is_cache = place(data_dir)
    origin = source(dataset)
    folder = where / origin.folder
    if where.exists() and not where.is_dir():
        raise LabError(f"{where} is a file; --data-dir, or CNN425_DATA_DIR, is the folder that holds {origin.folder}")
    if is_cache or download:
        fetch(origin, folder)
    try:
        contents = [found(part, folder, origin, dataset) for part in origin.parts]
    except OSError as error:
        raise LabError(f"cannot read {dataset}: {sentence(error)}") from None
    if dataset == "emnist-letters":
        contents = letters(contents[0])
    images, labels, test_images, test_labels = (decoded(content) for content in contents)
    if dataset == "emnist-letters":  # published transposed, and counted from 1
        images, test_images, labels, test_labels = images.transpose(1, 2), test_images.transpose(1, 2), labels - 1, test_labels - 1
    if dataset == "qmnist":  # the first of eight columns is the class
        labels, test_labels = labels[:, 0], test_labels[:, 0]
    return (
        Pictures(images.unsqueeze(1).contiguous(), labels.long(), origin.classes),
        Pictures(test_images.unsqueeze(1).contiguous(), test_labels.long(), origin.classes),
    )


def candidates(part: Part, folder: Path) -> Iterator[tuple[Path, str]]:
    """Where a published file may be, and the digest it then has: unpacked, packed, or either of them under Kaggle's names."""
    name = part.file.removesuffix(".gz")
    kaggle = name.replace("-idx", ".idx")  # train-images.idx3-ubyte, alone or in a folder called train-images-idx3-ubyte
    if part.unpacked:
        for path in (folder / name, folder / kaggle, folder / name / name, folder / kaggle / kaggle):
            yield path, part.unpacked
    yield folder / part.file, part.md5
    if part.unpacked:  # packed again by somebody else
        yield folder / f"{kaggle}.gz", part.unpacked
        yield folder / part.file, part.unpacked


def whole(content: bytes, digest: str) -> bytes | None:
    """The content of a published file, unpacked, if it or what is packed in it has this digest."""
    packed = content.startswith(b"\x1f\x8b")
    if packed and md5(content) != digest:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            content, packed = gzip.decompress(content), False
    if md5(content) != digest:
        return None
    return gzip.decompress(content) if packed else content


def found(part: Part, folder: Path, origin: Source, dataset: Dataset) -> bytes:
    """The content of a published file, unpacked, after its digest was checked; a damaged copy beside a whole one does no harm."""
    damaged = None
    for path, digest in candidates(part, folder):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if (unpacked := whole(content, digest)) is not None:
            return unpacked
        damaged = damaged or LabError(
            f"{path} is damaged: {len(content)} bytes with md5 {md5(content)}, the published file has {digest}; "
            f"remove it and put the published {part.file} (or {path.name}) into {folder}"
        )
    if damaged:
        raise damaged
    wanted = ", ".join(other.file for other in origin.parts)
    words = f"--dataset {dataset} --dry-run --download --data-dir {in_a_shell(folder.parents[1])}"
    raise LabError(
        f"{folder / part.file} is missing; put {wanted} into {folder}, or let `python -m cnn425.experiments.mnist {words}` do it, or leave "
        f"out --data-dir and CNN425_DATA_DIR to download to {place_of_cache()}"
    )


def place_of_cache() -> Path:
    """The cache folder, whatever the environment says."""
    return platformdirs.user_cache_path("cnn425") / "data"


def decoded(content: bytes) -> Tensor:
    """An IDX file as a tensor: magic number (two zeros, element type, number of dimensions), sizes, elements, all big-endian."""
    kind, dimensions = content[2], content[3]
    dtype = {8: ">u1", 9: ">i1", 12: ">i4"}[kind]
    sizes = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    values = numpy.frombuffer(content, dtype, offset=4 + 4 * dimensions).reshape(sizes)
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=True))


def letters(archive: bytes) -> list[bytes]:
    """The four files of EMNIST's letters, out of the archive of all its splits."""
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        names = [f"gzip/emnist-letters-{half}-{what}-ubyte.gz" for half in ("train", "test") for what in ("images-idx3", "labels-idx1")]
        return [gzip.decompress(files.read(name)) for name in names]


# ---- Download: once, whole, from the first mirror that answers ---------------------------------------------------------------------------


def fetch(origin: Source, folder: Path) -> None:
    """Download what is missing or damaged; of several processes that start together one does it, the others wait."""

    def missing() -> list[Part]:
        return [part for part in origin.parts if not any(is_whole(*candidate) for candidate in candidates(part, folder))]

    if not missing():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with if_able(folder, "lock files", "the download goes on; do not start a second one"):
                stack.enter_context(FileLock(folder / LOCK, timeout=1800))
            sweep(folder, [part.file for part in origin.parts])
            for part in missing():
                download(part, folder)
    except Timeout:
        raise LabError(f"another process has been downloading into {folder} for half an hour; end it and try again") from None
    except OSError as error:
        raise LabError(f"cannot download into {folder}: {sentence(error)}; use --data-dir to name another place") from None


def is_whole(path: Path, digest: str) -> bool:
    """Whether the file is there with this digest."""
    return path.is_file() and whole(path.read_bytes(), digest) is not None


def download(part: Part, folder: Path) -> None:
    """One file: every mirror, several times with growing pauses; it gets its name only when its digest is right."""
    reasons: list[str] = []
    for attempt in range(ATTEMPTS):
        for address in part.addresses:
            try:
                content = received(address)
            except (OSError, ValueError, HTTPException) as error:  # URLError and time-outs are OSErrors
                reasons.append(f"{address}: {getattr(error, 'reason', None) or first_line(error)}")
                continue
            if md5(content) == part.md5:
                if (folder / part.file).exists():  # damaged, or somebody's
                    os.replace(folder / part.file, folder / f"{part.file}.damaged")
                write_whole(folder / part.file, content)
                return
            reasons.append(f"{address}: {len(content)} bytes with a wrong md5")
        if attempt + 1 < ATTEMPTS:
            time.sleep(BACKOFF_SECONDS * 2**attempt)
    raise LabError(f"cannot download {part.file} ({short(reasons)}); without a network, put it into {folder} yourself")


def short(reasons: Sequence[str]) -> str:
    """The last thing each address said."""
    return "; ".join({reason.split(": ")[0]: reason for reason in reasons}.values())


def received(address: str) -> bytes:
    """What the address answers, with a progress bar."""
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        return b"".join(watched(pieces(answer), f"download {address.rsplit('/', 1)[1]}", max(1, -(-size // PIECE))))


def pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """The answer, piece by piece; a server that only drips is as good as one that is silent."""
    piece, size, begun = bytearray(), 0, time.monotonic()
    while part := answer.read1(PIECE - len(piece)):
        piece += part
        size += len(part)
        seconds = time.monotonic() - begun
        if seconds > TIMEOUT_SECONDS and size < seconds * SLOWEST:
            raise TimeoutError(f"only {size} bytes in {seconds:.0f} seconds")
        if len(piece) == PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
