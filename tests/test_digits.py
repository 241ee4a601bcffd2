import gzip
import http.server
import struct
import threading

import pytest
import torch

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
    monkeypatch.setattr(digits.datasets.MNIST, "resources", [(name, digits.md5(content)) for name, content in PACKED.items()])
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


def test_missing_files_are_one_sentence(published, tmp_path):
    with pytest.raises(LabError, match=f"is missing; put train-images-idx3-ubyte.gz, .* into {tmp_path}/MNIST/raw"):
        digits.load("mnist", tmp_path)


REAL_PLACE = digits.place


class Server(http.server.BaseHTTPRequestHandler):
    """A mirror that can be told to fail, to send half, or to send something else."""

    plan: list[str] = []
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        mood = self.plan.pop(0) if self.plan else "good"
        content = PACKED[self.path[1:]]
        if mood == "broken":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write({"good": content, "half": content[: len(content) // 2], "other": b"x" * len(content)}[mood])

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(published, tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Server.plan, Server.asked = [], []
    monkeypatch.setattr(digits.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(digits, "place", lambda given: (tmp_path, True))
    monkeypatch.setattr(digits, "BACKOFF_SECONDS", 0.0)
    yield tmp_path / "MNIST/raw"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "plan", [[], ["broken"], ["half"], ["other", "half"]], ids=["good", "busy once", "cut off once", "altered, cut off"]
)
def test_download_tries_again_until_the_digest_is_right(mirror, plan):
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
    with pytest.raises(LabError, match=r"is missing; put .* or say --download"):
        digits.load("mnist", tmp_path)
    assert not Server.asked
    assert digits.load("mnist", tmp_path, download=True)[0].labels.tolist() == [3, 9]


def test_damaged_cache_is_downloaded_again(mirror):
    mirror.mkdir(parents=True)
    (mirror / "train-labels-idx1-ubyte").write_bytes(b"rubbish")
    assert digits.load()[0].labels.tolist() == [3, 9]


def test_parallel_starts_download_once(mirror):
    threads = [threading.Thread(target=digits.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Server.asked) == 4


def test_no_network_names_the_files_and_the_place(published, tmp_path, monkeypatch):
    monkeypatch.setattr(digits.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
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
