"""A trained network can be read: the pixels it calls important are, and digits that are alike to its last layer are the same digit.

    python -m experiments.reading            (about 10 seconds; `--full`: all of MNIST, about 3 minutes)

A convolutional network (16 and 32 filters of 5x5 pixels) learns MNIST's digits; then it is looked at from five sides:

    filters         what its first layer looks for
    feature maps    what every layer answers to one digit
    saliency        the gradient of the true class's score, times the pixel: how much the score rests on that pixel. Claim: wiping out the
                    30 most important pixels of every test digit costs more correct answers than wiping out 30 others that bear ink
    neighbours      the nearest training digits in the space of the last layer's inputs, and in the space of pixels. Claim: nearest
                    neighbours recognise more test digits in the network's space
    confusion       which digits it takes for which

TensorBoard's projector shows the last layer's space with a picture of each digit.

Figures:

    reading.png       One digit passes through the trained network: convolutions with red for positive and blue for negative answers, pools
                      with the larger the redder. Look from map to map: fewer pixels, and each says more.
    saliency.png      Which pixels the score of the true class rests on. Look at the red strokes: they lie where the digit differs from
                      others.
    neighbours.png    Five test digits with the nearest training digits in two spaces, and the confusion matrix. Look for rows in which the
                      pixels' neighbours are of another class and the last layer's are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import image
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn425.lab import digits, figures
from cnn425.lab.errors import LabError, command
from cnn425.lab.folder import claim, write_whole
from cnn425.lab.loop import default_folder, show_board, train
from cnn425.lab.models import build
from cnn425.lab.options import Options, parse
from cnn425.lab.pictures import Pictures, pattern_images
from cnn425.lab.progress import say
from cnn425.lab.training import settings
from cnn425.lab.verdict import conclude, percent

TINY = ("--dataset", "patterns", "--examples", "64", "--test-examples", "40", "--batch-size", "32")

WIPED, NEIGHBOURS, PROJECTED = 30, 5, 500  # pixels; voters; digits in the projector


@dataclass(frozen=True)
class ReadingOptions(Options):
    """What can be changed; see --help."""

    batch_size: int = 50
    threads: int = 1
    """CPU threads per process. 0: torch's own choice."""
    dataset: digits.Dataset | str = "mnist"
    """MNIST or a sibling; or `patterns`, three synthetic patterns on 28x28 pixels (no files needed)."""
    data_dir: Path | None = None
    """The folder that holds MNIST/raw/... Default: CNN425_DATA_DIR, else a cache with download."""
    examples: int = 6000
    """Training pictures; `--full`: all."""
    test_examples: int = 1000
    """Test pictures; `--full`: all."""
    full: bool = False
    """All pictures."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        super().__post_init__()
        for name in ("examples", "test_examples"):
            if getattr(self, name) < 10:
                raise LabError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 10", 2)


class ReadingVerdict(NamedTuple):
    """Shares from 0 to 1 of the test pictures that are recognised.

    By the network: untouched, with the important pixels wiped out, with others; by their neighbours: in the last layer's space, in pixels.
    Holds if the network reads 90 %, the important pixels matter more than the others, and neighbours are better in the network's space.
    """

    holds: bool
    accuracy: float
    """test pictures recognised [%]"""
    without_important: float
    """the same, 30 important pixels wiped out [%]"""
    without_others: float
    """the same, 30 others wiped out [%]"""
    neighbours_in_features: float
    """recognised by neighbours in the last layer's space [%]"""
    neighbours_in_pixels: float
    """recognised by neighbours in the space of pixels [%]"""
    folder: str

    def sentence(self) -> str:
        """What came out."""
        return (
            f"the network recognises {percent(self.accuracy, 1)} of the test digits, {percent(self.without_important, 1)} without their "
            f"{WIPED} most important pixels and {percent(self.without_others, 1)} without {WIPED} others; nearest neighbours recognise "
            f"{percent(self.neighbours_in_features, 1)} in its last layer's space, {percent(self.neighbours_in_pixels, 1)} among the "
            "pixels"
        )


def data(options: ReadingOptions) -> tuple[Pictures, Pictures]:
    """Training and test pictures, `(N, 1, 28, 28)`."""
    if options.dataset == "patterns":
        return pattern_images(options.examples, seed=options.seed), pattern_images(options.test_examples, seed=options.seed + 1)
    training, test = digits.load(options.dataset, options.data_dir)  # type: ignore[arg-type]
    return (training, test) if options.full else (training.first(options.examples), test.first(options.test_examples))


def answers(model: nn.Sequential, images: Tensor) -> list[Tensor]:
    """What every layer answers, in order; the input of the last layer is the one before the last."""
    outputs = [images]
    with torch.no_grad():
        for layer in model:
            outputs.append(layer(outputs[-1]))
    return outputs[1:]


def scores(model: nn.Sequential, images: Tensor, which: int = -1) -> Tensor:
    """The answers of layer `which` to many images, a thousand at a time."""
    return torch.cat([answers(model, part)[which] for part in images.split(1000)])


def saliency(model: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the true class's score times the pixel: `(N, 1, H, W)`."""
    shares = []
    for part, true in zip(images.split(1000), labels.split(1000), strict=True):
        x = part.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).gather(1, true[:, None]).sum(), x)
        shares.append(gradient * part)
    return torch.cat(shares)


def wiped(images: Tensor, importance: Tensor) -> Tensor:
    """The images with their most important pixels set to the background."""
    flat = images.flatten(1).clone()
    flat.scatter_(1, importance.flatten(1).topk(WIPED).indices, 0.0)
    return flat.reshape(images.shape)


def nearest(known: Tensor, asked: Tensor, count: int = NEIGHBOURS) -> Tensor:
    """Indices of the `count` known vectors that are nearest to each asked one, nearest first: `(N, count)`."""
    return torch.cat([torch.cdist(part, known).topk(count, largest=False).indices for part in asked.split(500)])


def project(folder: Path, features: Tensor, pictures: Pictures) -> None:
    """The files of TensorBoard's projector: vectors, labels, and a sheet with a small picture of each."""
    images, labels = pictures.batch(slice(None))
    write_whole(claim(folder, "features.tsv"), "\n".join("\t".join(f"{v:.5g}" for v in row) for row in features.tolist()).encode() + b"\n")
    write_whole(claim(folder, "labels.tsv"), "\n".join(pictures.classes[k] for k in labels.tolist()).encode() + b"\n")
    side = -(-(len(images) ** 0.5) // 1)
    h, w = images.shape[2:]
    sheet = torch.zeros(int(side), int(side), h, w)
    sheet.flatten(0, 1)[: len(images)] = 1 - images[:, 0]
    image.imsave(
        claim(folder, "sprites.png"), sheet.permute(0, 2, 1, 3).reshape(int(side) * h, int(side) * w).numpy(), cmap="gray", vmin=0, vmax=1
    )
    words = f"""embeddings {{
  tensor_name: "inputs of the last layer"
  tensor_path: "features.tsv"
  metadata_path: "labels.tsv"
  sprite {{ image_path: "sprites.png" single_image_dim: {w} single_image_dim: {h} }}
}}
"""
    write_whole(claim(folder, "projector_config.pbtxt"), words.encode())


def main(argv: Sequence[str] | None = None) -> ReadingVerdict:
    """Train, then read; the verdict."""
    options = parse(ReadingOptions, argv)
    training, test = data(options)
    model = build("conv", options.layers, options.seed, classes=len(training.classes))
    folder = options.log_dir or default_folder("reading", "conv", options)
    result = train(options, model, training, test, folder, title=f"conv ({options.layers})")
    with settings(options):
        return read(options, model.cpu().float(), training, test, result.folder)


def read(options: ReadingOptions, model: nn.Sequential, training: Pictures, test: Pictures, folder: Path) -> ReadingVerdict:
    """The five looks at a trained network; the verdict."""
    (known, known_labels), (images, labels) = training.first(6000).batch(slice(None)), test.batch(slice(None))

    def share(predictions: Tensor) -> float:
        return float((predictions == labels).double().mean())

    importance = saliency(model, images, labels)
    random = torch.Generator().manual_seed(options.seed)
    chance = torch.rand(images.shape, generator=random) * (images > 0.2)  # pixels that bear ink, in any order
    predictions = scores(model, images).argmax(1)
    accuracy, without, others = (
        share(p) for p in (predictions, *(scores(model, wiped(images, i)).argmax(1) for i in (importance, chance)))
    )
    spaces = ((scores(model, known, -2), scores(model, images, -2)), (known.flatten(1), images.flatten(1)))
    found = [nearest(*space) for space in spaces]
    in_features, in_pixels = (share(known_labels[indices].mode(1).values) for indices in found)
    print(f"{accuracy:.1%} of {len(labels)} test pictures recognised")
    print(f"with {WIPED} important pixels wiped out {without:.1%}, with as many others {others:.1%}")
    print(f"by {NEIGHBOURS} nearest neighbours: {in_features:.1%} in the last layer's space, {in_pixels:.1%} in the space of pixels")
    if not options.dry_run:
        project(folder, spaces[0][1][:PROJECTED], test.first(PROJECTED))
        drawn = {
            "reading.png": draw_layers(model, images, test.classes),
            "saliency.png": draw_saliency(images, labels, importance, test.classes),
            "neighbours.png": draw_neighbours(known, images, labels, predictions, found, test.classes),
        }
        for name, figure in drawn.items():
            figures.save(figure, claim(folder, name), dpi=110)
    verdict = ReadingVerdict(
        accuracy >= 0.9 and without < others and in_features > in_pixels, accuracy, without, others, in_features, in_pixels, str(folder)
    )
    conclude(verdict, None if options.dry_run else folder, judged=not options.dry_run)
    if not options.dry_run:
        for name in drawn:
            say(f"figure: {folder / name}")
        show_board(folder)
    return verdict


# ---- The figures -------------------------------------------------------------------------------------------------------------------------


def side_by_side(pictures: Tensor, columns: int = 4) -> Tensor:
    """Pictures `(K, H, W)` in rows, with a gap of nothing (NaN) around each: `(rows * (H + 2), columns * (W + 2))`."""
    rows = -(-len(pictures) // columns)
    framed = nn.functional.pad(pictures, (1, 1, 1, 1), value=float("nan"))
    sheet = framed.new_full((rows * columns, *framed.shape[1:]), float("nan"))
    sheet[: len(pictures)] = framed
    return sheet.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def draw_layers(model: nn.Sequential, images: Tensor, classes: Sequence[str]) -> Figure:
    """The first layer's filters, and the answers of convolutions and pools to one digit."""
    made = figures.figure(11, 7.6)
    outputs = answers(model, images[:1])
    chances = outputs[-1][0].softmax(0)
    made.suptitle(f"From pixels to scores: the network is {percent(float(chances.max()))} sure of its answer", fontsize=13)
    steps = [
        (f"{type(layer).__name__}, {'x'.join(map(str, y.shape[1:]))}", y[0])
        for layer, y in zip(model, outputs, strict=True)
        if y.ndim == 4 and hasattr(layer, "kernel_size")
    ]
    top, bottom = made.subfigures(2, 1, height_ratios=[1, 1])
    above = top.subplots(1, 2 + len(steps) // 2)
    below = bottom.subplots(1, 1 + len(steps) - len(steps) // 2, width_ratios=[1.7] * (len(steps) - len(steps) // 2) + [0.9])
    above[0].imshow(images[0, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    above[0].set_title("image, 1x28x28", fontsize=10)
    above[1].imshow(side_by_side(figures.stretched(figures.filters(model, (28, 28)))).numpy(), cmap="RdBu_r", vmin=0, vmax=1)
    above[1].set_title("filters of the first layer", fontsize=10)
    for axes, (title, maps) in zip([*above[2:], *below[:-1]], steps, strict=True):
        signed = bool((maps < 0).any())
        sheet = side_by_side(figures.stretched(maps, symmetric=signed), 4 if len(maps) <= 16 else 8)
        axes.imshow(sheet.numpy(), cmap="RdBu_r" if signed else "Reds", vmin=0, vmax=1)
        axes.set_title(title, fontsize=10)
    for axes in [*above, *below[:-1]]:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    below[-1].barh(range(len(classes)), chances.tolist(), color="#00798c")
    below[-1].set(yticks=range(len(classes)), yticklabels=classes, xlim=(0, 1), xticks=[0, 1], xlabel="probability")
    below[-1].invert_yaxis()
    below[-1].set_title("softmax of the scores", fontsize=10)
    return made


def draw_saliency(images: Tensor, labels: Tensor, importance: Tensor, classes: Sequence[str]) -> Figure:
    """What the score of ten digits rests on."""
    made = figures.figure(9, 4.4)
    made.suptitle("Gradient of the true class's score times the pixel: red speaks for the class, blue against it", fontsize=12)
    for k, axes in enumerate(made.subplots(2, 5).flat):
        same = (labels == k % len(classes)).nonzero().flatten()
        axes.set(xticks=[], yticks=[])
        if len(same) > k // len(classes):
            index = int(same[k // len(classes)])
            largest = float(importance[index].abs().max()) or 1.0
            axes.imshow(importance[index, 0].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
            axes.contour(images[index, 0].numpy(), levels=[0.5], colors="#555555", linewidths=0.8)
    return made


def draw_neighbours(
    known: Tensor, images: Tensor, labels: Tensor, predictions: Tensor, found: Sequence[Tensor], classes: Sequence[str]
) -> Figure:
    """The nearest training digits in both spaces for five test digits that pixels get wrong if there are any; the confusion matrix."""
    made = figures.figure(13, 5)
    left, right = made.subfigures(1, 2, width_ratios=[1.45, 1])
    left.suptitle("Nearest training digits: to the network's last layer, and pixel by pixel", fontsize=11)
    differ = (found[0][:, 0] != found[1][:, 0]).nonzero().flatten()
    chosen = differ[torch.linspace(0, len(differ) - 1, 5).long()] if len(differ) else torch.arange(5)
    axes_of = left.subplots(5, 2 + 2 * NEIGHBOURS, width_ratios=[1] + [0.85] * NEIGHBOURS + [0.25] + [0.85] * NEIGHBOURS)
    for axes in axes_of.flat:
        axes.axis("off")
    for row, index in zip(axes_of, chosen.tolist(), strict=True):
        row[0].imshow(images[index, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        for space, start in ((0, 1), (1, 2 + NEIGHBOURS)):
            for k in range(NEIGHBOURS):
                row[start + k].imshow(known[found[space][index, k], 0].numpy(), cmap="Blues" if space == 0 else "Greys", vmin=0, vmax=1)
    axes_of[0, 0].set_title("test digit", fontsize=8)
    axes_of[0, 1 + NEIGHBOURS // 2].set_title("last layer", fontsize=9, color="#00598c")
    axes_of[0, 2 + NEIGHBOURS + NEIGHBOURS // 2].set_title("pixels", fontsize=9)
    counts = figures.confusion(labels, predictions, len(classes))
    axes = right.subplots()
    axes.imshow((counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(
        xticks=range(len(classes)), yticks=range(len(classes)), xticklabels=classes, yticklabels=classes, xlabel="predicted", ylabel="true"
    )
    for r in range(len(classes)):
        for c in range(len(classes)):
            if counts[r, c]:
                axes.text(
                    c,
                    r,
                    str(int(counts[r, c])),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if counts[r, c] > counts[r].sum() / 2 else "#d1495b",
                )
    axes.set_title("Confusion: which test digits are taken for which", fontsize=11)
    return made


if __name__ == "__main__":
    command(main)
