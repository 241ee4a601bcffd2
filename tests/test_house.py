"""The rules of the house: imports run one way, no forbidden kernel is reached, the README tells the truth about the files."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cnn425.nn import functional as F

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "cnn425").rglob("*.py"))

# A file of the room on the left may import from the rooms on its right, and from its own.
MAY_IMPORT = {
    "experiments": {"lab", "nn", "autodiff", "agreement", "algorithms", "windows"},
    "lab": {"nn"},
    "nn": {"layers", "algorithms", "windows"},
    "layers": {"algorithms", "windows"},
    "algorithms": {"windows"},
    "windows": set(),
    "agreement": set(),
    "autodiff": set(),
}
# Layer files share these rooms of their own and import no other layer, unless one layer is defined by another.
SHARED_BY_LAYERS = {"function", "arguments", "batching"}
DEFINED_BY = {("adaptive", "pool"), ("local", "conv"), ("loss", "activation"), ("lp", "adaptive"), ("lp", "pool")}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] != "cnn425" else parts[1]


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "experiments").glob("*.py"))], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "experiments" and here == "experiments":
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
        f"{name}_pool{d}d": (lambda x, f=f"{name}_pool{d}d", a=a: getattr(F, f)(x, *a), (image(d),))
        for d in (1, 2, 3)
        for name, a in (("max", (3, 2, 1)), ("avg", (3, 2, 1)), ("adaptive_max", (3,)), ("adaptive_avg", (3,)), ("lp", (2.0, 3, 2)))
    },
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


@pytest.mark.parametrize("name", LAYERS)
def test_no_peeking_in_forward_backward_and_double_backward(name):
    function, tensors = LAYERS[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    with Recorder() as recorder:
        y = function(*leaves)
        gradients = torch.autograd.grad(y, leaves, torch.randn_like(y).requires_grad_(), create_graph=True)
        differentiable = [g for g in gradients if g.requires_grad]
        assert differentiable, "a layer must be twice differentiable"
        torch.autograd.grad(differentiable, leaves, [torch.randn_like(g) for g in differentiable], allow_unused=True)
    assert not [name for name in recorder.seen if FORBIDDEN.search(name)]


def test_the_recorder_can_catch_a_peek():
    with Recorder() as recorder:
        torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))
    assert [name for name in recorder.seen if FORBIDDEN.search(name)]


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


def test_every_module_has_its_test():
    stems = {p.stem for p in (ROOT / "tests").glob("test_*.py")}
    layers = [p.stem for p in (ROOT / "cnn425/layers").glob("*.py") if p.stem not in {"__init__", *SHARED_BY_LAYERS} and "_" not in p.stem]
    missing = [stem for stem in ["windows", "agreement", *layers] if f"test_{stem}" not in stems]
    assert not missing


def test_nothing_names_a_machine():
    pattern = re.compile(r"/work/|pythonhosted|pypi\.org|deb\.debian", re.I)
    guilty = [
        f
        for f in tracked()
        if f.endswith((".py", ".md", ".toml", ".yaml")) and f != "tests/test_house.py" and pattern.search((ROOT / f).read_text())
    ]
    assert not guilty
