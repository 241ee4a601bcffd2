"""A convolution is one neuron shifted over the image, and its weights are a template: it answers most where the image looks like them.

    python -m experiments.filters            (about 10 seconds)
    python -m experiments.filters --film     (a few seconds: a kernel slides over an image, in any geometry: --stride 2 --padding 1 ...)

On a photograph, with our convolution:

    one neuron      a `Linear` with the nine weights of the vertical-edge filter, set down on windows one by one, gives the same numbers
    a few filters   vertical edges [-1 0 1; -1 0 1; -1 0 1], the 3x3 box, horizontal edges, edges of all directions
    learning        from the photograph and its filtered pictures alone, least squares finds the weights again
    a template      cut out of the photograph. The answer of a convolution is |template| |window| cos(angle), so a bright window beats the
                    right one; with both means subtracted and both lengths divided out (normalised cross-correlation, the cosine itself)
                    the right one wins with the answer 1. The means and lengths of all windows are convolutions with a box, too.

The photograph is Grace Hopper's official portrait (J. S. Davis, United States Navy, 1984): a work of the US government, in the public
domain; it comes with matplotlib. tests/test_filters.py compares every response with SciPy's.

Figures:

    kernel.gif      One kernel of 3x3 weights slides over a small image, and each window gives one number of the output. Look at the window
                    and the sum: the weights stay the same at every place, and the output answers at the edges.
    filters.png     A photograph through four filters, and the filters that least squares finds again from the photograph and its four
                    pictures. Compare each pair of squares: given and learnt are the same.
    template.png    A part of the photograph is looked for with three kinds of answers; a circle marks the largest of each. Look at the last
                    map: only the normalised answer finds the part where it was cut out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from matplotlib import cbook, image
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.models import Layers, namespace
from cnn425.lab.progress import watched
from cnn425.lab.study import Study, StudyOptions, at_least, parse, study
from cnn425.nn import functional

TINY = ("--size", "48", "--template", "64", "40", "9", "12")

FILTERS = {
    "vertical edges": ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)),
    "box": ((1 / 9,) * 3,) * 3,
    "horizontal edges": ((-1, -1, -1), (0, 0, 0), (1, 1, 1)),
    "all edges": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
}


@dataclass(frozen=True)
class FilterOptions(StudyOptions):
    """What can be changed; see --help."""

    template: tuple[int, int, int, int] = (90, 104, 14, 22)
    """The part of the photograph (300 x 256 pixels) to look for: top, left, height, width, in pixels."""
    size: int = 120
    """Side of the square in the middle of the photograph from which the filters are learnt, in pixels."""
    threads: int = 1
    """CPU threads. 0: torch's own choice."""
    film: bool = False
    """Measure nothing; write kernel.gif, in which a kernel slides over a small image while the output fills."""
    side: int = 7
    """Side of the film's image, in pixels."""
    kernel: int = 3
    """Side of the film's kernel, in pixels."""
    stride: int = 1
    """Pixels from window to window in the film."""
    padding: int = 0
    """Pixels of zeros around the film's image."""
    dilation: int = 1
    """Pixels from cell to cell inside a window of the film."""

    def __post_init__(self) -> None:
        """Refuses a template or a square that is not in the photograph."""
        at_least(self, threads=0, side=1, kernel=1, stride=1, padding=0, dilation=1)
        if not 0 < self.positions <= 20:
            raise LabError(f"--side {self.side} and the other numbers of the film make {self.positions} positions; 1 to 20 are wanted", 2)
        top, left, height, width = self.template
        if min(top, left) < 0 or min(height, width) < 2 or top + height > 300 or left + width > 256:
            raise LabError(f"--template is {' '.join(map(str, self.template))}; at least 2 x 2 pixels inside 300 x 256 are wanted", 2)
        if not 8 <= self.size <= 512:
            raise LabError(f"--size is {self.size}; it must be from 8 to 256 pixels", 2)

    @property
    def positions(self) -> int:
        """Of the film's kernel along a side of its image."""
        return (self.side + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


class Match(NamedTuple):
    """Where a response is largest (row and column of the window's first pixel), the response there, and how far that is off, in pixels."""

    row: int
    column: int
    response: float
    """answer"""
    pixels_off: float
    """pixels off"""


class FilterVerdict(NamedTuple):
    """Largest differences: neuron and convolution, learnt and true weights; who finds the template.

    Holds if both are below 1e-9, normalised cross-correlation finds the template with the answer 1, and the bare convolution does not.
    """

    holds: bool
    neuron_difference: float
    """largest difference between one neuron, moved, and the convolution"""
    learnt_difference: float
    """largest difference between learnt and true weights"""
    raw: Match
    """where the convolution finds the template"""
    centred: Match
    """where the template without its mean finds it"""
    normalised: Match
    """where normalised cross-correlation finds it"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"one neuron moved over the image differs from the convolution by at most {self.neuron_difference:.1g}; the sum of products "
            f"is largest {self.raw.pixels_off:.0f} pixels from the template's place, its normalised form {self.normalised.pixels_off:.0f}"
        )


def photograph() -> Tensor:
    """Grace Hopper in grey, at half the size of the file, brightness 0 to 1: `(1, 1, 300, 256)`, float64."""
    colours = torch.from_numpy(image.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).copy()).double() / 255
    grey = (colours @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[None, None]
    return functional.avg_pool2d(grey, 2)


def bank() -> Tensor:
    """The four filters as a convolution's weight: `(4, 1, 3, 3)`."""
    return torch.tensor(list(FILTERS.values()), dtype=torch.float64).unsqueeze(1)


def one_neuron(ours: ModuleType, x: Tensor, weight: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
    """The answers of a single neuron, a `Linear` with these weights, that is set down at each position in turn."""
    neuron = ours.Linear(weight.numel(), 1, bias=False, dtype=torch.float64)
    u, v = weight.shape
    with torch.no_grad():
        neuron.weight.copy_(weight.reshape(1, -1))
        return torch.stack([neuron(x[0, 0, i : i + u, j : j + v].reshape(-1))[0] for i, j in positions])


def learnt(ours: ModuleType, x: Tensor, wanted: Tensor) -> Tensor:
    """The filters that make `wanted` from x, by minimising the squared error from zero weights: `(O, 1, 3, 3)`.

    Neighbouring pixels of a photograph are nearly equal, so this error is a valley thousands of times longer than wide, and plain descent
    takes as many steps. The error is quadratic: Newton's step, with the second derivatives of our layer, leads to the bottom at once; a
    second one removes the rounding of the first.
    """

    def error(weight: Tensor) -> Tensor:
        return (ours.functional.conv2d(x, weight) - wanted[:, k : k + 1]).square().mean()

    found = torch.zeros(wanted.shape[1], 1, 3, 3, dtype=x.dtype)
    for _ in range(2):
        for k in range(len(found)):
            weight = found[k : k + 1].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(error(weight), weight)
            curvature = torch.autograd.functional.hessian(error, weight).reshape(9, 9)
            found[k] -= torch.linalg.solve(curvature, gradient.flatten()).reshape(1, 3, 3)
    return found


def responses(layers: Layers, x: Tensor, template: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three responses to a template `(U, V)` at every position: the convolution, that of the template without its mean, the cosine."""
    conv2d = namespace(layers).functional.conv2d
    kernel = template[None, None]
    centred = kernel - kernel.mean()
    box = torch.full_like(kernel, 1 / kernel.numel())
    mean = conv2d(x, box)
    variance = (conv2d(x * x, box) - mean * mean).clamp(min=1e-12)  # of each window; a flat one resembles nothing
    response = conv2d(x, centred)
    return conv2d(x, kernel)[0, 0], response[0, 0], (response / (centred.norm() * (kernel.numel() * variance).sqrt()))[0, 0]


def best(response: Tensor, place: Sequence[int]) -> Match:
    """The largest response, and how far from `place` it is."""
    row, column = divmod(int(response.argmax()), response.shape[1])
    return Match(row, column, float(response[row, column]), ((row - place[0]) ** 2 + (column - place[1]) ** 2) ** 0.5)


class FilmVerdict(NamedTuple):
    """How many pictures the film has; holds if it was written."""

    holds: bool
    pictures: int

    @property
    def MUST_HOLD(self) -> bool:
        """A task, not a claim."""
        return True


def main(argv: Sequence[str] | None = None) -> FilterVerdict | FilmVerdict:
    """The three parts of the claim on the photograph; the verdict. With `--film`, write a film instead."""
    options = parse(FilterOptions, argv)
    with study("filters", options) as record:
        if not options.film:
            return tried(options, record)
        many = options.positions**2
        record.film("kernel", watched(sliding(options), "pictures", many))
        return FilmVerdict(True, many)


def tried(options: FilterOptions, record: Study) -> FilterVerdict:
    """Filter, learn the filters again, look for the template, and draw it; the verdict."""
    ours, x, weight = namespace(options.layers), photograph(), bank()
    filtered = ours.functional.conv2d(x, weight)
    random = torch.Generator().manual_seed(options.seed)
    places = [tuple(torch.randint(0, 254, (2,), generator=random).tolist()) for _ in range(200)]
    shifted = one_neuron(ours, x, weight[0, 0], places)
    neuron = float((shifted - torch.stack([filtered[0, 0, i, j] for i, j in places])).abs().max())
    print(f"one neuron, set down at {len(places)} places: at most {neuron:.1e} from the convolution's answer")
    top, left, size = (300 - options.size) // 2, (256 - options.size) // 2, options.size
    square = x[..., top : top + size, left : left + size]
    found = learnt(ours, square, ours.functional.conv2d(square, weight))
    error = float((found - weight).abs().max())
    print(f"weights learnt from the photograph and its {len(weight)} filtered pictures: at most {error:.1e} off")
    top, left, height, width = options.template
    template = x[0, 0, top : top + height, left : left + width]
    maps = responses(options.layers, x, template)
    matches = [best(response, (top, left)) for response in maps]
    for name, match in zip(("convolution", "template without its mean", "normalised cross-correlation"), matches, strict=True):
        print(f"{name}: largest answer {match.response:.3f}, {match.pixels_off:.0f} pixels off")
    holds = neuron < 1e-9 and error < 1e-9 and matches[2].pixels_off == 0 and abs(matches[2].response - 1) < 1e-9 < matches[0].pixels_off
    record.figure("filters", draw_filters(x, filtered, found))
    record.figure("template", draw_template(x, options.template, maps, matches))
    return record.verdict(FilterVerdict(holds, neuron, error, *matches))


# ---- The figures -------------------------------------------------------------------------------------------------------------------------


def draw_filters(x: Tensor, filtered: Tensor, found: Tensor) -> Figure:
    """The photograph and its four responses, above them the weights that made them and the weights that were learnt."""
    made = figures.figure(12, 4.5)
    made.suptitle("One photograph, four filters: each answers where the image looks like its weights", fontsize=13)
    grid = made.add_gridspec(2, 5, height_ratios=[1, 3.3])
    crop = (slice(30, 220), slice(48, 208))
    axes = made.add_subplot(grid[1, 0], xticks=[], yticks=[])
    axes.imshow(x[0, 0][crop].numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xlabel("photograph", fontsize=9)
    axes = made.add_subplot(grid[0, 0])
    axes.axis("off")
    told = "each filter and, beside it,\nwhat is learnt from the photograph\nand its filtered picture"
    axes.text(0.98, 0.5, told, ha="right", va="center", transform=axes.transAxes, fontsize=9)
    for column, (name, response) in enumerate(zip(FILTERS, filtered[0], strict=True), start=1):
        weights = grid[0, column].subgridspec(1, 2)
        for side, values in enumerate((bank()[column - 1, 0], found[column - 1, 0])):
            axes = made.add_subplot(weights[side], xticks=[], yticks=[])
            largest = float(values.abs().max())
            axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
            for u in range(3):
                for v in range(3):
                    value = round(float(values[u, v]), 2) + 0.0
                    strong = abs(value) > 0.6 * largest
                    axes.text(v, u, f"{value:.2g}", ha="center", va="center", fontsize=7, color="white" if strong else "black")
            axes.set_title(("filter", "learnt")[side], fontsize=8, color=("black", "#00798c")[side], pad=3)
        axes = made.add_subplot(grid[1, column], xticks=[], yticks=[])
        shown = response[crop]
        limit = float(shown.abs().quantile(0.99))
        axes.imshow(shown.numpy(), cmap="gray", vmin=0 if name == "box" else -limit, vmax=1 if name == "box" else limit)
        axes.set_xlabel(name, fontsize=9)
    return made


def sliding(options: FilterOptions) -> Iterator[Figure]:
    """One picture per window: the image with the window's pixels marked, the kernel, and the output up to there."""
    k, s, p, d = options.kernel, options.stride, options.padding, options.dilation
    x = torch.zeros(options.side, options.side, dtype=torch.float64)
    x[:, options.side // 2 :] = 1  # bright on the right: an edge
    x[options.side // 2 :] = 2 - x[options.side // 2 :]
    weight = (torch.arange(k, dtype=torch.float64) - (k - 1) / 2).sign().expand(k, k)
    y = namespace(options.layers).functional.conv2d(x[None, None], weight[None, None], stride=s, padding=p, dilation=d)[0, 0]
    padded = nn.functional.pad(x, (p, p, p, p))
    made = figures.figure(9.6, 4.4)
    left, middle, right = made.subplots(1, 3, width_ratios=[len(padded), k + 0.5, len(y)])  # cells of one size
    grid(left, padded, "Greys", 6)
    left.set_title(f"image, {options.side}x{options.side}" + (f", and {p} of padding" if p else ""), fontsize=11)
    if p:
        left.add_patch(Rectangle((p - 0.5, p - 0.5), options.side, options.side, fill=False, edgecolor="#555555", linewidth=2))
    grid(middle, weight, "RdBu_r", 3)
    middle.set_title(f"kernel, {k}x{k}", fontsize=11)
    middle.set_xlabel("positive where it is\nbrighter on the right" if k > 1 else "", fontsize=10)
    marks = [Rectangle((0, 0), 1, 1, facecolor="#edae49", alpha=0.4, edgecolor="#b36b00", linewidth=2) for _ in range(k * k)]
    for mark in marks:
        left.add_patch(mark)
    limit = float(y.abs().max()) or 1.0
    places = [(i, j) for i in range(y.shape[0]) for j in range(y.shape[1])]
    right.set_title(f"output, {y.shape[0]}x{y.shape[1]}", fontsize=11)
    shown = grid(right, torch.full_like(y, float("nan")), "RdBu_r", 2 * limit)
    here = right.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor="#b36b00", linewidth=2.5, zorder=3))
    filled = torch.full_like(y, float("nan"))
    for i, j in places:
        for mark, (u, v) in zip(marks, [(u, v) for u in range(k) for v in range(k)], strict=True):
            mark.set_xy((j * s + v * d - 0.5, i * s + u * d - 0.5))
        here.set_xy((j - 0.5, i - 0.5))
        filled[i, j] = y[i, j]
        shown.set_data(filled.numpy())
        right.text(j, i, f"{float(y[i, j]):g}", ha="center", va="center", fontsize=10)
        window = padded[i * s : i * s + d * (k - 1) + 1 : d, j * s : j * s + d * (k - 1) + 1 : d]
        terms = " + ".join(f"{float(a):g}·{float(b):g}" for a, b in zip(window.flatten(), weight.flatten(), strict=True) if b) or "0"
        title = f"Output [{i}, {j}] = {terms if len(terms) < 60 else 'the sum of window x kernel'} = {float(y[i, j]):g}"
        made.suptitle(title, fontsize=12)
        yield made


def grid(axes: Any, numbers: Tensor, colours: str, limit: float) -> Any:
    """Numbers `(H, W)` as coloured cells with the numbers in them, coloured from -limit to limit; what is NaN stays white."""
    shown = axes.imshow(numbers.numpy(), cmap=colours, vmin=0 if colours == "Greys" else -limit, vmax=limit)
    for (i, j), number in [((i, j), float(numbers[i, j])) for i in range(numbers.shape[0]) for j in range(numbers.shape[1])]:
        if number == number:
            axes.text(j, i, f"{number:g}", ha="center", va="center", fontsize=10)
    axes.set_xticks([j - 0.5 for j in range(numbers.shape[1] + 1)], [])
    axes.set_yticks([i - 0.5 for i in range(numbers.shape[0] + 1)], [])
    axes.tick_params(length=0)
    axes.grid(color="#bbbbbb", linewidth=0.6)
    return shown


def draw_template(x: Tensor, template: Sequence[int], maps: Sequence[Tensor], matches: Sequence[Match]) -> Figure:
    """Where each of the three responses is largest, on the photograph and in the map of responses."""
    top, left, height, width = template
    made = figures.figure(12, 4.7)
    made.suptitle("A template finds itself once brightness and contrast are divided out", fontsize=13)
    titles = ("convolution: sum of products", "template without its mean", "normalised cross-correlation: cosine")
    axes_of = made.subplots(1, 4, width_ratios=[1, 1, 1, 1])
    axes_of[0].imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    axes_of[0].set_title("photograph, template in yellow", fontsize=9)
    for colour, line in (("black", 4.5), ("#ffd400", 2.2)):  # a dark edge, so that it is seen on white
        axes_of[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line))
    colours = ("#d1495b", "#6a4c93", "#ffd400")
    for axes, title, response, match, colour in zip(axes_of[1:], titles, maps, matches, colours, strict=True):
        axes.imshow(
            response.numpy(), cmap="gray", extent=(width / 2, width / 2 + response.shape[1], height / 2 + response.shape[0], height / 2)
        )
        axes.set(xlim=(0, 256), ylim=(300, 0), facecolor="#f4f4f4")
        axes.set_title(title, fontsize=9)
        axes.plot(
            [match.column + width / 2],
            [match.row + height / 2],
            "o",
            markersize=13,
            markerfacecolor="none",
            color=colour,
            markeredgewidth=2,
        )
        axes.set_xlabel(f"largest answer {match.response:.4g}\n{match.pixels_off:.0f} pixels from the template's place", fontsize=9)
        if match.pixels_off:
            axes_of[0].add_patch(
                Rectangle((match.column, match.row), width, height, fill=False, edgecolor=colour, linewidth=2.2, linestyle="--")
            )
    for axes in axes_of:
        axes.set(xticks=[], yticks=[])
    return made


if __name__ == "__main__":
    command(main)
