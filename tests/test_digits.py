import contextlib
import gzip
import http.server
import io
import struct
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from forked import Forked
from torchvision import datasets

from cnn425.lab import digits
from cnn425.lab.errors import LabError


def idx(values):
    """A tensor of bytes as an IDX file."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + bytes(values.flatten().tolist())


IMAGES = torch.arange(2 * 28 * 28).remainder(251).to(torch.uint8).view(2, 28, 28)
CONTENTS = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(torch.tensor([3, 9], dtype=torch.uint8)),
    "t10k-images-idx3-ubyte": idx(255 - IMAGES),
    "t10k-labels-idx1-ubyte": idx(torch.tensor([1, 0], dtype=torch.uint8)),
}
PACKED = {name + ".gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}


@pytest.fixture
def published(monkeypatch):
    """Tiny files stand for the published ones: their digests take the place of MNIST's."""
    monkeypatch.setattr(digits, "UNPACKED", {name: digits.md5(content) for name, content in CONTENTS.items()})
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, digits.md5(content)) for name, content in PACKED.items()])
    monkeypatch.delenv("CNN425_DATA_DIR", raising=False)


def lay(folder, contents):
    (folder / "MNIST/raw").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "MNIST/raw" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("contents", [CONTENTS, PACKED], ids=["unpacked", "packed"])
def test_digits_are_loaded_whole(published, tmp_path, contents):
    training, test = digits.load("mnist", lay(tmp_path, contents))
    assert torch.equal(training.images[:, 0], IMAGES)
    assert torch.equal(test.images[:, 0], 255 - IMAGES)
    assert training.labels.tolist() == [3, 9]
    assert test.labels.tolist() == [1, 0]
    assert training.images.dtype == torch.uint8


def test_environment_names_the_place(published, tmp_path, monkeypatch):
    monkeypatch.setenv("CNN425_DATA_DIR", str(lay(tmp_path, CONTENTS)))
    assert len(digits.load()[0].labels) == 2


def truncated(content):
    return content[:-1]


def altered(content):
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize("damage", [truncated, altered, lambda content: b""], ids=["truncated", "altered", "empty"])
def test_damaged_files_are_one_sentence(published, tmp_path, damage):
    name = "t10k-images-idx3-ubyte"
    lay(tmp_path, {**CONTENTS, name: damage(CONTENTS[name])})
    with pytest.raises(
        LabError, match=f"{name} is damaged: .* remove it and put the published {name}.gz .* into {tmp_path}/MNIST/raw"
    ) as caught:
        digits.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


KAGGLE = {name.replace("-idx", ".idx"): content for name, content in CONTENTS.items()}


@pytest.mark.parametrize(
    "contents",
    [
        KAGGLE,
        {f"{name.replace('.idx', '-idx')}/{name.replace('.idx', '-idx')}": content for name, content in KAGGLE.items()},
        {**dict(list(KAGGLE.items())[:2]), **dict(list(PACKED.items())[2:])},
        {f"{name}.gz": gzip.compress(content, 1) for name, content in KAGGLE.items()},
        {f"{name}.gz": gzip.compress(content, 1) for name, content in CONTENTS.items()},
    ],
    ids=["names with a dot", "each in a folder of its name", "two of each", "names with a dot, packed", "packed again"],
)
def test_the_names_of_kaggle_are_known(published, tmp_path, contents):
    for name, content in contents.items():
        (tmp_path / "MNIST/raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "MNIST/raw" / name).write_bytes(content)
    training, test = digits.load("mnist", tmp_path)
    assert (training.labels.tolist(), test.labels.tolist()) == ([3, 9], [1, 0])


def test_a_damaged_copy_beside_a_whole_one_does_no_harm(published, tmp_path):
    lay(tmp_path, {**PACKED, "train-images-idx3-ubyte": b"rubbish"})
    assert digits.load("mnist", tmp_path)[0].labels.tolist() == [3, 9]


@pytest.mark.parametrize("written", ["~/data", "~/data/", "$HOME/data", "${HOME}/data", "$BASE/data"])
def test_the_place_may_be_written_as_in_a_file_of_settings(written, published, tmp_path, monkeypatch):
    lay(tmp_path / "data", CONTENTS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BASE", "~")
    monkeypatch.setenv("CNN425_DATA_DIR", written)
    assert digits.load()[0].labels.tolist() == [3, 9]
    monkeypatch.delenv("CNN425_DATA_DIR")
    assert digits.load("mnist", Path(written))[0].labels.tolist() == [3, 9]


def test_missing_files_are_one_sentence(published, tmp_path):
    with pytest.raises(LabError, match=f"is missing; put train-images-idx3-ubyte.gz, .* into {tmp_path}/MNIST/raw"):
        digits.load("mnist", tmp_path)


PUBLISHED = {}  # what the mirror has, by name
ENOUGH = threading.Event()  # ends the waiting of a mirror that is slow
REAL_PLACE = digits.place


class Server(http.server.BaseHTTPRequestHandler):
    """A mirror that can be told to fail, to send half or something else, to be slow, or to speak no HTTP."""

    plan: list[str] = []
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        mood = self.plan.pop(0) if self.plan else "good"
        content = PUBLISHED[self.path[1:]]
        if mood == "broken":
            self.send_error(503)
            return
        if mood == "garbage":
            self.wfile.write(b"what?\r\n\r\n")
            return
        if mood == "silent":
            ENOUGH.wait(20)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if mood == "drips":
            with contextlib.suppress(OSError):
                for place in range(len(content)):
                    self.wfile.write(content[place : place + 1])
                    ENOUGH.wait(0.1)
            return
        self.wfile.write({"good": content, "half": content[: len(content) // 2], "other": b"x" * len(content)}[mood])

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(published, tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = False  # so that closing it waits for every answer: none is counted in the next test
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Server.plan, Server.asked = [], []
    PUBLISHED.clear()
    PUBLISHED.update(PACKED)
    ENOUGH.clear()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(digits, "place", lambda given: (tmp_path, True))
    monkeypatch.setattr(digits, "BACKOFF_SECONDS", 0.0)
    yield tmp_path / "MNIST/raw"
    ENOUGH.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("plan", [[], ["broken"], ["half"], ["other", "half"], ["silent"], ["drips"], ["garbage"]], ids=", ".join)
def test_download_tries_again_until_the_digest_is_right(mirror, plan, monkeypatch):
    if {"silent", "drips"} & set(plan):
        monkeypatch.setattr(digits, "TIMEOUT_SECONDS", 0.5)  # elsewhere a loaded machine may take longer
    Server.plan = list(plan)
    assert digits.load()[0].labels.tolist() == [3, 9]
    assert len(Server.asked) == 4 + len(plan)
    assert {path.name: path.read_bytes() for path in mirror.glob("*.gz")} == PACKED
    assert digits.load()[1].labels.tolist() == [1, 0]
    assert len(Server.asked) == 4 + len(plan), "downloaded once"


def test_a_partial_file_is_never_taken_for_whole(mirror):
    Server.plan = ["half"] * 9
    with pytest.raises(LabError, match=r"cannot download train-images-idx3-ubyte.gz .*wrong md5|IncompleteRead|put it into"):
        digits.load()
    assert not list(mirror.glob("*idx*"))


def test_a_named_folder_is_filled_only_if_asked(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "place", REAL_PLACE)
    with pytest.raises(LabError, match=r"is missing; put .* or let `python -m cnn425.experiments.mnist .*--download --data-dir "):
        digits.load("mnist", tmp_path)
    assert not Server.asked
    assert digits.load("mnist", tmp_path, download=True)[0].labels.tolist() == [3, 9]


def test_damaged_files_are_downloaded_again_and_none_is_lost(mirror):
    mirror.mkdir(parents=True)
    names = ("train-labels-idx1-ubyte", "train-images-idx3-ubyte.gz", ".draft.part", ".letter.12.part", "notes.md")
    for name in names:
        (mirror / name).write_bytes(b"mine")
    (mirror / ".t10k-images-idx3-ubyte.gz.12.part").write_bytes(b"half")
    assert digits.load()[0].labels.tolist() == [3, 9]
    kept = {path.name for path in mirror.iterdir() if path.read_bytes() == b"mine"}
    assert kept == {*names, "train-images-idx3-ubyte.gz.damaged"} - {"train-images-idx3-ubyte.gz"}
    assert not (mirror / ".t10k-images-idx3-ubyte.gz.12.part").exists()


def test_parallel_starts_download_once(mirror):
    threads = [threading.Thread(target=digits.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Server.asked) == 4


ELSEWHERE = """
import sys
from pathlib import Path
from torchvision import datasets
from cnn425.lab import digits
folder, address, *parts = sys.argv[1:]
datasets.MNIST.mirrors, datasets.MNIST.resources = [address], [tuple(part.split("=")) for part in parts]
digits.UNPACKED = {}
digits.place = lambda given: (Path(folder), True)
print(digits.load()[0].labels.tolist())
"""


def test_parallel_processes_download_once(mirror, tmp_path):
    address = datasets.MNIST.mirrors[0]
    parts = [f"{name}={digits.md5(content)}" for name, content in PACKED.items()]
    processes = [Forked(["-c", ELSEWHERE, str(tmp_path), address, *parts]) for _ in range(3)]
    try:
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:  # none goes on into another test
            process.kill()
            process.communicate()
    assert [words.splitlines()[-1] for words in said] == ["[3, 9]"] * 3
    assert len(Server.asked) == 4


def test_the_next_mirror_is_asked(mirror, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", *datasets.MNIST.mirrors])
    assert digits.load()[0].labels.tolist() == [3, 9]
    assert len(Server.asked) == 4


def archive(files):
    """A zip archive in memory."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("name", ["fashion", "kmnist", "qmnist", "emnist-letters"])
def test_siblings_are_downloaded_and_decoded(mirror, monkeypatch, name):
    """Each in its own published form: labels of eight columns, or transposed pictures and labels from 1 in an archive of all splits."""
    labels = torch.tensor([3, 9], dtype=torch.uint8)
    address = datasets.MNIST.mirrors[0]
    if name == "emnist-letters":
        files = {}
        for half, images, classes in (("train", IMAGES, labels), ("test", 255 - IMAGES, 10 - labels)):
            files[f"gzip/emnist-letters-{half}-images-idx3-ubyte.gz"] = gzip.compress(idx(images.transpose(1, 2).contiguous()))
            files[f"gzip/emnist-letters-{half}-labels-idx1-ubyte.gz"] = gzip.compress(idx(classes + 1))
        PUBLISHED["gzip.zip"] = archive(files)
        monkeypatch.setattr(datasets.EMNIST, "url", address + "gzip.zip")
        monkeypatch.setattr(datasets.EMNIST, "md5", digits.md5(PUBLISHED["gzip.zip"]))
    elif name == "qmnist":
        tables = [torch.cat([column[:, None], torch.zeros(2, 7)], 1).int() for column in (labels, 10 - labels)]
        packed = [struct.pack(">BBBB2I16i", 0, 0, 12, 2, 2, 8, *table.flatten().tolist()) for table in tables]
        contents = (idx(IMAGES), packed[0], idx(255 - IMAGES), packed[1])
        resources = []
        for file, content in zip(("a-images.gz", "a-labels.gz", "b-images.gz", "b-labels.gz"), contents, strict=True):
            PUBLISHED[file] = gzip.compress(content)
            resources.append((address + file, digits.md5(PUBLISHED[file])))
        monkeypatch.setattr(datasets.QMNIST, "resources", {"train": resources[:2], "test": resources[2:]})
    else:
        kind = {"fashion": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[name]
        contents = (idx(IMAGES), idx(labels), idx(255 - IMAGES), idx(10 - labels))
        PUBLISHED.update({file: gzip.compress(content) for (file, _), content in zip(kind.resources, contents, strict=True)})
        monkeypatch.setattr(kind, "mirrors", [address])
        monkeypatch.setattr(kind, "resources", [(file, digits.md5(PUBLISHED[file])) for file, _ in kind.resources])
    training, test = digits.load(name)
    assert training.labels.tolist() == [3, 9]
    assert test.labels.tolist() == [7, 1]
    assert torch.equal(training.images[:, 0], IMAGES)
    assert torch.equal(test.images[:, 0], 255 - IMAGES)
    asked = len(Server.asked)
    digits.load(name)
    assert len(Server.asked) == asked == len(digits.source(name).parts), "downloaded once"


def test_no_network_names_the_files_and_the_place(published, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(digits, "place", lambda given: (tmp_path, True))
    monkeypatch.setattr(digits, "BACKOFF_SECONDS", 0.0)
    with pytest.raises(LabError, match=f"cannot download train-images-idx3-ubyte.gz .* without a network, put it into {tmp_path}"):
        digits.load()


@pytest.mark.parametrize("name", ["mnist", "fashion", "kmnist", "emnist-letters", "qmnist"])
def test_every_sibling_has_files_digests_and_classes(name):
    origin = digits.source(name)
    assert len(origin.parts) == (1 if name == "emnist-letters" else 4)
    assert all(len(part.md5) == 32 and part.addresses for part in origin.parts)
    assert len(origin.classes) == (26 if name == "emnist-letters" else 10)


def test_integers_of_four_bytes_are_big_endian():
    content = struct.pack(">BBBB2I4i", 0, 0, 12, 2, 2, 2, 1, -2, 3, 70000)
    assert digits.decoded(content).tolist() == [[1, -2], [3, 70000]]
