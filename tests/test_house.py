"""The rules of the house: imports run one way, no forbidden kernel is reached, the README tells the truth about the files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cnn425 import algorithms
from cnn425.kernels import threads
from cnn425.layers.activation import softmax
from cnn425.layers.local import shared_local
from cnn425.layers.local_low_rank import low_rank_local
from cnn425.nn import functional as F

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "cnn425").rglob("*.py"))

# A file of the room on the left may import from the rooms on its right, and from its own.
MAY_IMPORT = {
    "experiments": {"lab", "nn", "autodiff", "agreement", "algorithms", "windows"},
    "scripts": {"lab", "nn", "autodiff", "agreement", "algorithms", "windows"},
    "lab": {"nn"},
    "nn": {"layers", "algorithms", "windows", "compat"},
    "layers": {"algorithms", "kernels", "windows", "compat"},
    "algorithms": {"kernels", "windows", "compat"},
    "kernels": {"compat"},
    "windows": {"compat"},
    "compat": set(),
    "agreement": set(),
    "autodiff": set(),
}
# Layer files share these rooms of their own and import no other layer, unless one layer is defined by another.
SHARED_BY_LAYERS = {"function", "arguments"}
DEFINED_BY = {
    ("conv", "bilinear"),
    ("local", "bilinear"),
    ("local", "conv"),
    ("local", "activation"),
    ("adaptive", "pool"),
    ("lp", "pool"),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] != "cnn425" else parts[1]


OUTSIDE = [path for folder in ("experiments", "scripts") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("path", [*SOURCES, *OUTSIDE], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in ("experiments", "scripts") and here == "scripts":  # experiments import one another relatively
            continue
        if parts[0] == "cnn425" and len(parts) > 1:
            assert parts[1] == here or parts[1] in MAY_IMPORT[here], f"{here} imports {name}"
        assert parts[0] not in {"experiments", "scripts", "tests"}, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "cnn425/layers").glob("*.py")), ids=lambda p: p.stem)
def test_layer_files_do_not_import_one_another(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["cnn425", "layers"]:
            family, other = path.stem.split("_")[0], parts[2].split("_")[0]
            assert other == family or other in SHARED_BY_LAYERS or (family, other) in DEFINED_BY, f"{path.stem} imports {name}"


def test_tensorboard_is_imported_in_one_file():
    assert len([p for p in [*SOURCES, *(ROOT / "experiments").glob("*.py")] if "tensorboard" in " ".join(imports(p))]) == 1


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) != "lab"], ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_the_lab_nothing_is_printed(path):
    calls = [n.func.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in calls


# ---- no peeking

FORBIDDEN = re.compile(
    r"conv|mkldnn|onednn|cudnn|miopen|_pool|unfold|im2col|col2im|softmax|nll|cross_entropy|linear|threshold|relu|sigmoid|embedding|thnn|slow_"
)


class Recorder(TorchDispatchMode):
    """Every ATen operator that runs, by name."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen.add(operator._schema.name.removeprefix("aten::"))
        return operator(*args, **(kwargs or {}))


def image(d, channels=4, size=8):
    return torch.randn(2, channels, *[size] * d)


LAYERS = {
    **{
        f"conv{d}d": (
            lambda x, w, b, d=d: getattr(F, f"conv{d}d")(x, w, b, padding=1),
            (image(d), torch.randn(6, 4, *[3] * d), torch.randn(6)),
        )
        for d in (1, 2, 3)
    },
    **{
        f"conv_transpose{d}d": (
            lambda x, w, b, d=d: getattr(F, f"conv_transpose{d}d")(x, w, b, stride=2),
            (image(d), torch.randn(4, 6, *[3] * d), torch.randn(6)),
        )
        for d in (1, 2, 3)
    },
    "conv2d strided": (lambda x, w: F.conv2d(x, w, stride=2, dilation=2), (image(2), torch.randn(6, 4, 3, 3))),
    "conv2d depthwise": (lambda x, w: F.conv2d(x, w, groups=4), (image(2), torch.randn(4, 1, 3, 3))),
    "conv2d large": (lambda x, w: F.conv2d(x, w, padding=1), (torch.randn(8, 64, 14, 14), torch.randn(64, 64, 3, 3))),
    "conv2d large kernel": (lambda x, w: F.conv2d(x, w), (torch.randn(1, 4, 40, 40), torch.randn(4, 4, 31, 31))),
    "conv2d channels last": (
        lambda x, w: F.conv2d(x, w, padding=1),
        (torch.randn(8, 64, 14, 14).to(memory_format=torch.channels_last), torch.randn(64, 64, 3, 3)),
    ),
    "conv2d pointwise": (lambda x, w: F.conv2d(x, w), (image(2), torch.randn(6, 4, 1, 1))),
    "conv2d bfloat16": (lambda x, w: F.conv2d(x, w), (image(2).bfloat16(), torch.randn(6, 4, 3, 3).bfloat16())),
    **{
        f"locally_connected{d}d": (
            lambda x, w, d=d: getattr(F, f"locally_connected{d}d")(x, w),
            (image(d, size=5), torch.randn(*[3] * d, 6, 4, *[3] * d)),
        )
        for d in (1, 2, 3)
    },
    **{
        f"locally_connected_transpose{d}d": (
            lambda x, w, d=d: getattr(F, f"locally_connected_transpose{d}d")(x, w, stride=2),
            (image(d, size=4), torch.randn(*[4] * d, 4, 6, *[3] * d)),
        )
        for d in (1, 2, 3)
    },
    **{
        f"local layer that shares weights, {share or tile}": (
            lambda x, w, share=share, tile=tile: shared_local(x, w, None, share, tile, 1, 0, 1, 1),
            (image(2), torch.randn(2, 2, 6, 4, 3, 3)),
        )
        for share, tile in (((3, 4), None), ((1, 1), (2, 2)))
    },
    "low rank": (
        lambda x, w, m: low_rank_local(2, x, w, softmax(m, 0), None, 1, 1, 1, 1),
        (image(2), torch.randn(3, 6, 4, 3, 3), torch.randn(3, 8, 8)),
    ),
    **{
        f"{name}_pool{d}d": (lambda x, f=f"{name}_pool{d}d", a=a: getattr(F, f)(x, *a), (image(d),))
        for d in (1, 2, 3)
        for name, a in (("max", (3, 2, 1)), ("avg", (3, 2, 1)), ("adaptive_max", (3,)), ("adaptive_avg", (3,)), ("lp", (2.0, 3, 2)))
    },
    **{f"unfold{d}d": (lambda x, d=d: F.unfold(x, (3,) * d, stride=2), (image(d),)) for d in (1, 2, 3)},
    "fold": (lambda y: F.fold(y, 8, 3), (torch.randn(2, 18, 36),)),
    "max_pool2d that tiles": (lambda x: F.max_pool2d(x, 2), (image(2),)),
    "max_pool2d with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (image(2),)),
    "adaptive_avg_pool2d global": (lambda x: F.adaptive_avg_pool2d(x, 1), (image(2),)),
    "linear": (lambda x, w, b: F.linear(x, w, b), (torch.randn(5, 4), torch.randn(3, 4), torch.randn(3))),
    "relu": (lambda x: F.relu(x), (torch.randn(5, 4),)),
    "sigmoid": (lambda x: F.sigmoid(x), (torch.randn(5, 4),)),
    "softmax": (lambda x: F.softmax(x, dim=1), (torch.randn(5, 4),)),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.tensor([0, 1, 3, 3, 2])), (torch.randn(5, 4),)),
    "cross_entropy of probabilities": (lambda x: F.cross_entropy(x, torch.full((5, 4), 0.25), label_smoothing=0.1), (torch.randn(5, 4),)),
}


def three_passes(name):
    """Forward, backward and double backward of a layer."""
    function, tensors = LAYERS[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    gradients = torch.autograd.grad(y, leaves, torch.randn_like(y).requires_grad_(), create_graph=True)
    differentiable = [g for g in gradients if g.requires_grad]
    assert differentiable, "a layer must be twice differentiable"
    torch.autograd.grad(differentiable, leaves, [torch.randn_like(g) for g in differentiable], allow_unused=True)


def entered(function):
    """The Python functions that a call enters: their code."""
    codes = set()
    sys.setprofile(lambda frame, event, _: codes.add(frame.f_code) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return codes


def operators(function):
    """The names of the ATen operators that a call runs, in C++ too; unlike a dispatch mode, a profiler leaves the loops on."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.name.removeprefix("aten::") for event in profile.events() if event.name.startswith("aten::")}


@pytest.mark.parametrize("name", LAYERS)
def test_no_peeking_in_forward_backward_and_double_backward(name):
    """A dispatch mode sees every operator, and switches the loops off."""
    with Recorder() as recorder:
        three_passes(name)
    assert recorder.seen
    assert not [name for name in recorder.seen if FORBIDDEN.search(name)]


WITHOUT_LOOPS = {
    "linear",
    "cross_entropy of probabilities",
    "adaptive_avg_pool2d global",
    *("unfold1d", "unfold2d", "unfold3d", "fold"),
}  # matrix products and elementwise operations of torch


@pytest.mark.parametrize("name", LAYERS)
def test_no_peeking_with_loops_on(name):
    threads.has_numba()  # which tries a loop, too
    loops = entered(lambda: three_passes(name))
    assert (threads.Loop.__call__.__code__ in loops) == (name not in WITHOUT_LOOPS)
    seen = operators(lambda: three_passes(name))
    assert seen
    assert not [name for name in seen if FORBIDDEN.search(name)]


@pytest.mark.parametrize("name", LAYERS)
def test_the_definition_uses_no_loop(name):
    with algorithms.use("definition"):
        assert threads.Loop.__call__.__code__ not in entered(lambda: three_passes(name))


def test_the_recorders_can_catch_a_peek():
    def peek():
        torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))

    with Recorder() as recorder:
        peek()
    for seen in (recorder.seen, operators(peek)):
        assert [name for name in seen if FORBIDDEN.search(name)]


# ---- what fits on a few screens


def test_modules_have_at_most_300_lines_and_functions_50():
    modules, functions = {}, {}
    for path in SOURCES:
        name, text = str(path.relative_to(ROOT / "cnn425")), path.read_text()
        modules[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions[f"{name} {node.name}"] = node.end_lineno - node.lineno + 1
    for most, lines in ((300, modules), (50, functions)):
        assert not {name: n for name, n in lines.items() if n > most}, "too long"


# ---- one screen per layer

CALLS = {
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (torch.randn(2, 4, 8, 8),)),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6))),
    "depthwise conv2d": (lambda x, w: F.conv2d(x, w, groups=8), (torch.randn(2, 8, 8, 8), torch.randn(8, 1, 3, 3))),
    "locally_connected2d": (lambda x, w: F.locally_connected2d(x, w), (torch.randn(2, 4, 6, 6), torch.randn(4, 4, 6, 4, 3, 3))),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.tensor([0, 1, 3])), (torch.randn(3, 4),)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_passes_through_few_files(name):
    """Layer, arguments, function, what a convolution shares with a local layer, algorithms and kernels, windows: at most six places, in at
    most ten files."""
    function, tensors = CALLS[name]
    leaves = [t.clone().requires_grad_() for t in tensors]

    def files(call):
        opened = {Path(code.co_filename).resolve() for code in entered(call)}
        return sorted(str(f.relative_to(ROOT)) for f in opened if f.is_relative_to(ROOT / "cnn425"))

    def backward():
        torch.autograd.grad(y, leaves, upstream)

    y = function(*leaves)  # what is compiled and remembered at the first call is no part of the way
    upstream = torch.randn_like(y)
    backward()
    forward_files = files(lambda: function(*leaves))
    y = function(*leaves)
    backward_files = files(backward)
    assert forward_files
    assert backward_files
    for found in (forward_files, backward_files):
        assert len(found) <= 10, found
        places = {"algorithms and kernels" if name.startswith(("cnn425/algorithms/", "cnn425/kernels/")) else name for name in found}
        assert len(places) <= 6, places


# ---- the README tree


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {f for f in listed if (ROOT / f).exists()}


def readme_tree():
    """Files and leaf folders of the README's tree: the block after the mark `<!-- tree -->`, four spaces for each level, then a remark."""
    block = (ROOT / "README.md").read_text().split("<!-- tree -->")[1].split("```")[1]
    entries, folders = [], []
    for line in block.splitlines()[1:]:
        match = re.match(r"^( *)(\S+)", line)
        if match and not (depth := len(match[1])) % 4:
            folders[depth // 4 :] = [match[2]]
            entries.append("".join(folders))
    return [e for e in entries if not e.endswith("/") or not any(other.startswith(e) and other != e for other in entries)]


def test_readme_tree_is_true():
    """Every file is named, or lies in a folder that the tree leaves closed; and everything named is there."""
    tree, files = readme_tree(), tracked()
    closed = tuple(entry for entry in tree if entry.endswith("/"))
    assert not [f for f in files if f not in tree and not f.startswith(closed)], "there but not in the README's tree"
    assert not [e for e in tree if e not in files and not any(f.startswith(e) for f in files if e.endswith("/"))], (
        "in the tree but not there"
    )


# Modules that are tested under the name of what they are a part of.
TESTED_BY = {
    "backend": "setup",
    "functional": "drop_in",
    "machine_code": "threads",
    "local_arguments": "local",
    "local_conversion": "local",
    "local_lazy": "local",
    "low_rank": "local_low_rank",
    "shards": "group",
    "training": "loop",
}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem != "__init__"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_has_its_test(path):
    assert (ROOT / f"tests/test_{TESTED_BY.get(path.stem, path.stem)}.py").exists()


def test_nothing_names_a_machine():
    pattern = re.compile(r"/work/|pythonhosted|pypi\.org|deb\.debian", re.I)
    guilty = [
        f
        for f in tracked()
        if f.endswith((".py", ".md", ".toml", ".yaml")) and f != "tests/test_house.py" and pattern.search((ROOT / f).read_text())
    ]
    assert not guilty
