"""The smallest network in full: its gradient is (probability - truth) times pixel, so it learns pixels: noise is fine, a shift is not.

    python -m experiments.smallest            (about 10 seconds; `experiments.patterns` trains the same network through the lab's loop)
    python -m experiments.smallest --film     (a few seconds: its weights while it learns)

Data: three patterns of 3x3 pixels. Network: 9 pixels x into 3 units, scores s = W x + b. Loss: cross-entropy of the softmax q. By hand,

    dL/dW[o,p] = mean over pictures of (q[o] - y[o]) x[p]            dL/db[o] = mean over pictures of (q[o] - y[o])

with y[o] = 1 for the true pattern, else 0. Three things follow before anything is run. A pixel that no pattern lights has gradient zero:
its weights stay the random numbers they began as. The centre, which every pattern lights, learns what the bias learns. And as q and y
both sum to one, the three weights of a pixel keep their sum. A bar moved aside shares its pixels with the other patterns, none with
itself: the network must take it for another. Against noise nothing can do better than comparing with the three patterns themselves.

Figures:

    learning.gif           The weights of the three units from the first step of gradient descent to the last, and the loss. Look at the red
                           pixels: they become those of the unit's own pattern.
    smallest.png           The 27 weights of the smallest network, before, during and after 300 steps, beside the patterns and the first
                           gradient. Look at the grey curves: weights of pixels that no pattern lights do not move at all.
    smallest_unseen.png    The trained network is asked about noisy patterns and about pictures it never saw. Look at the teal bars: a bar
                           moved by one pixel is taken for another pattern.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnn425.lab import figures
from cnn425.lab.errors import command
from cnn425.lab.models import build, namespace
from cnn425.lab.pictures import PATTERNS, drawn, patterns
from cnn425.lab.progress import watched
from cnn425.lab.study import StudyOptions, at_least, parse, study
from cnn425.lab.verdict import percent

TINY = ("--steps", "2", "--seeds", "1", "--test-pictures", "30")

CENTRE, DARK = 4, (2, 6)  # pixels in reading order; the dark ones are lit by no pattern
UNSEEN = {
    "vertical, left": ("#..", "#..", "#.."),
    "vertical, right": ("..#", "..#", "..#"),
    "horizontal, up": ("###", "...", "..."),
    "horizontal, down": ("...", "...", "###"),
    "other diagonal": ("..#", ".#.", "#.."),
    "plus": (".#.", "###", ".#."),
    "everything lit": ("###", "###", "###"),
    "nothing lit": ("...", "...", "..."),
}
SHIFTED = {name: list(PATTERNS).index(name.split(",")[0]) for name in UNSEEN if "," in name}
ROLES = {"own ink": "#00798c", "ink of the others": "#d1495b", "centre, ink of all": "#edae49", "lit by none": "#555555"}
NOISES = torch.linspace(0, 1, 21).tolist()


@dataclass(frozen=True)
class SmallestOptions(StudyOptions):
    """What can be changed; see --help."""

    steps: int = 300
    """Steps of gradient descent, each on all pictures."""
    lr: float = 0.5
    """Step size."""
    noise: float = 0.5
    """Standard deviation of the noise for the second network, and where the verdict measures; the ink is 1 bright."""
    seeds: int = 20
    """Initial weights from which moved bars are tried."""
    film: bool = False
    """Measure nothing; write learning.gif, in which the network learns."""
    test_pictures: int = 3000
    """Noisy pictures at each point of the noise curve. `--full`: ten times as many."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, threads=0, steps=1, lr=1e-9, noise=0, seeds=1, test_pictures=3)


class SmallestVerdict(NamedTuple):
    """Differences from the formulas, then shares from 0 to 1.

    Holds if hand and backward agree to 1e-12 over all of training, dark pixels did not move at all and the centre moved with the bias to
    1e-12, the clean patterns are recognised, noise costs at most 3 points more than it must, and not one in ten moved bars is recognised.
    """

    holds: bool
    gradient_difference: float
    """largest difference between the gradient by hand and backward"""
    trained_difference: float
    """largest difference between the weights after training by either"""
    dark_pixels_moved: float
    """how far the weights of pixels moved that no pattern lights"""
    centre_against_bias: float
    """largest difference between the moves of the centre's weight and of the bias"""
    clean_accuracy: float
    """clean patterns recognised [%]"""
    noisy_accuracy: float
    """noisy patterns recognised [%]"""
    noisy_accuracy_trained_with_noise: float
    """the same, trained with noise [%]"""
    noisy_accuracy_at_best: float
    """the same, at best [%]"""
    shifted_recognised: float
    """bars moved aside by one pixel recognised [%]"""

    def sentence(self) -> str:
        """What came out."""
        return (
            f"{percent(self.noisy_accuracy, 1)} of noisy patterns are recognised, where {percent(self.noisy_accuracy_at_best, 1)} is the "
            f"most possible, and {percent(self.shifted_recognised)} of bars moved aside by one pixel"
        )


def network(options: SmallestOptions, seed: int) -> nn.Sequential:
    """Pictures `(N, 1, 3, 3) -> (N, 3)` scores, in float64."""
    return build("smallest", options.layers, seed, size=(3, 3), classes=3).double()


def gradient(W: Tensor, b: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dW and dL/db by hand: `(3, 9)`, `(3,)` from pixels `(N, 9)`."""
    scores = (x @ W.T + b).exp()
    error = scores / scores.sum(1, keepdim=True)
    error[torch.arange(len(labels)), labels] -= 1
    return error.T @ x / len(labels), error.mean(0)


def learn(model: nn.Sequential, options: SmallestOptions, images: Tensor, labels: Tensor) -> tuple[list[float], list[Tensor]]:
    """Gradient descent with the gradients of our layers; loss in nats and weights `(3, 9)` before each step and at the end."""
    loss = namespace(options.layers).CrossEntropyLoss()
    losses, weights = [], []
    for step in range(options.steps + 1):
        value = loss(model(images), labels)
        losses.append(value.item())
        weights.append(model.get_parameter("1.weight").detach().clone())
        if step < options.steps:
            model.zero_grad()
            value.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(options.lr * parameter.grad)
    return losses, weights


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of pictures whose largest score is that of the true pattern."""
    return float((scores.detach().argmax(1) == labels).double().mean())


def at_noise(options: SmallestOptions, answers: Sequence[Callable[[Tensor], Tensor]], noise: float) -> list[float]:
    """The accuracy of each way to answer, on new pictures with this noise, the same for all."""
    many = options.test_pictures * (10 if options.full else 1) // 3
    pictures, truth = patterns(many, noise, options.seed + 2).batch(slice(None), torch.float64)
    return [accuracy(answer(pictures), truth) for answer in answers]


def unseen() -> Tensor:
    """The pictures that are never trained on, `(8, 1, 3, 3)`."""
    return torch.stack([drawn(rows) for rows in UNSEEN.values()]).double()[:, None]


def moved_bars(options: SmallestOptions, images: Tensor, labels: Tensor) -> list[bool]:
    """Whether each moved bar is recognised, by networks trained from different initial weights."""
    right = []
    for seed in watched(range(options.seed, options.seed + options.seeds), "initial weights", options.seeds):
        model = network(options, seed)
        learn(model, options, images, labels)
        called = dict(zip(UNSEEN, model(unseen()).argmax(1).tolist(), strict=True))
        right += [called[name] == o for name, o in SHIFTED.items()]
    return right


def role(o: int, p: int) -> str:
    """What pixel p is to unit o."""
    inks = torch.stack([drawn(rows).flatten() for rows in PATTERNS.values()])
    if p in DARK or p == CENTRE:
        return "lit by none" if p in DARK else "centre, ink of all"
    return "own ink" if inks[o, p] else "ink of the others"


def draw_learning(losses: Sequence[float], weights: Sequence[Tensor], first: Tensor) -> Any:
    """The figure: the patterns, which way the first gradient pulls, weights before and after, and how each weight moved."""
    made = figures.figure(13, 7)
    left, right = made.subfigures(1, 2, width_ratios=[1, 1])
    rows: dict[str, Sequence[Tensor]] = {
        "pattern": [drawn(p) for p in PATTERNS.values()],
        "weights\nbefore": weights[0].unbind(),
        "- gradient,\nfirst step": (-first).unbind(),
        "weights\nafter": weights[-1].unbind(),
    }
    panels = left.subplots(len(rows), 3)
    for line, (title, pictures) in zip(panels, rows.items(), strict=True):
        largest = max(float(picture.abs().max()) for picture in pictures)
        for axes, name, picture in zip(line, PATTERNS, pictures, strict=True):
            picture = picture.reshape(3, 3)
            ink = title == "pattern"
            axes.imshow(picture.numpy(), cmap="gray_r" if ink else "RdBu_r", vmin=0 if ink else -1.2 * largest, vmax=1.2 * largest)
            axes.set(xticks=[], yticks=[], title=name if ink else "")
            for place in [] if ink else range(9):
                value = float(picture.flatten()[place])
                shade = "white" if abs(value) > 0.7 * largest else "black"
                axes.text(place % 3, place // 3, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=9, color=shade)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=11, labelpad=8)
    top, bottom = right.subplots(2, 1, height_ratios=[1, 1.6], sharex=True)
    top.plot(losses, color="black")
    top.set(ylabel="loss [nats]", ylim=(0, None), title="Gradient descent on the three patterns")
    moved = torch.stack(list(weights))
    for name, colour in ROLES.items():
        some = [(o, p) for o in range(3) for p in range(9) if role(o, p) == name]
        for k, (o, p) in enumerate(some):
            bottom.plot(moved[:, o, p], color=colour, linewidth=1.3, label=f"{name} ({len(some)} weights)" if k == 0 else None)
    bottom.set(xlabel="step", ylabel="weight", title="All 27 weights, by what their pixel is to their unit")
    bottom.legend(fontsize=9, loc="upper left", ncols=2)
    bottom.set_ylim(float(moved.min()) - 0.3, 1.35 * float(moved.max()))
    return made


def learning(steps: Sequence[int], losses: Sequence[float], weights: Sequence[Tensor]) -> Iterator[Any]:
    """One picture per step: the patterns, the weights of the three units, and the loss so far."""
    made = figures.figure(8.4, 4.2)
    left, right = made.subfigures(1, 2, width_ratios=[1.15, 1])
    cells = left.subplots(2, 3)
    limit = float(torch.stack(list(weights)).abs().max())
    shown = []
    for column, (name, rows) in enumerate(PATTERNS.items()):
        cells[0, column].imshow(drawn(rows).numpy(), cmap="gray_r", vmin=0, vmax=1.2)
        cells[0, column].set_title(name, fontsize=10)
        shown.append(cells[1, column].imshow(weights[0][column].reshape(3, 3).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit))
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
    cells[0, 0].set_ylabel("pattern", fontsize=10)
    cells[1, 0].set_ylabel("weights", fontsize=10)
    left.colorbar(shown[0], ax=cells[1], shrink=0.8)
    axes = right.subplots()
    (curve,) = axes.plot([], [], color="black")
    axes.set(xlim=(0, steps[-1]), ylim=(0, 1.05 * max(losses)), xlabel="step of gradient descent", ylabel="loss [nats]")
    for step in steps:
        for picture, row in zip(shown, weights[step], strict=True):
            picture.set_data(row.reshape(3, 3).numpy())
        curve.set_data(range(step + 1), losses[: step + 1])
        made.suptitle(f"The smallest network learns: step {step}, loss {losses[step]:.2f} nats", fontsize=12)
        yield made


def draw_unseen(curves: Mapping[str, Sequence[float]], answers: Tensor) -> Any:
    """The figure: accuracy against noise, and what the network says to pictures that it never saw."""
    made = figures.figure(13, 5.4)
    left, right = made.subfigures(1, 2, width_ratios=[1, 1.1])
    axes = left.subplots()
    for (name, values), style in zip(curves.items(), ("-", "--", ":"), strict=True):
        axes.plot(NOISES, [100 * value for value in values], style, linewidth=2.5 if style == ":" else 2, label=name)
    axes.axhline(100 / 3, color="#999999", linewidth=0.8)
    axes.text(0, 34.5, "guessing", fontsize=9, color="#666666")
    axes.set(
        xlabel="noise: standard deviation, where the ink is 1",
        ylabel="patterns recognised [%]",
        ylim=(25, 102),
        title="Noise: as good as can be",
    )
    axes.legend(fontsize=10, loc="lower left", bbox_to_anchor=(0, 0.13))
    cells = right.subplots(4, 4, width_ratios=[1, 2.2] * 2)
    for k, ((name, rows), shares) in enumerate(zip(UNSEEN.items(), answers.tolist(), strict=True)):
        picture, bars = cells[k % 4, k // 4 * 2], cells[k % 4, k // 4 * 2 + 1]
        picture.imshow(drawn(rows).numpy(), cmap="gray_r", vmin=0, vmax=1.2)
        picture.set(xticks=[], yticks=[])
        picture.set_title(name, fontsize=10)
        bars.barh(range(3), shares, color=["#00798c" if SHIFTED.get(name) == o else "#cccccc" for o in range(3)])
        for o, (pattern, share) in enumerate(zip(PATTERNS, shares, strict=True)):
            bars.text(0.02, o, f"{pattern} {share:.0%}", fontsize=9, va="center")
        bars.set(xlim=(0, 1), ylim=(2.6, -0.6), yticks=[], xticks=[])
    right.suptitle("Pictures it never saw, and what it takes them for (teal: what a viewer would say)", fontsize=12)
    return made


class FilmVerdict(NamedTuple):
    """How many pictures the film has; holds if it was written."""

    holds: bool
    pictures: int

    @property
    def MUST_HOLD(self) -> bool:
        """A task, not a claim."""
        return True


def main(argv: Sequence[str] | None = None) -> SmallestVerdict | FilmVerdict:
    """Gradient by hand, training twice, noise, unseen pictures; the verdict. With `--film`, write a film instead."""
    options = parse(SmallestOptions, argv)
    images, labels = patterns().batch(slice(None), torch.float64)
    x = images.flatten(1)
    with study("smallest", options) as record:
        if options.film:
            losses, weights = learn(network(options, options.seed), options, images, labels)
            steps = sorted({round(1.17**k) - 1 for k in range(100) if 1.17**k <= options.steps + 1} | {options.steps})
            record.film("learning", watched(learning(steps, losses, weights), "pictures", len(steps)), 0.25)
            return FilmVerdict(True, len(steps))
        model = network(options, options.seed)
        W, b = (parameter.detach().clone() for parameter in model.parameters())
        b_before = b.clone()
        loss = namespace(options.layers).CrossEntropyLoss()
        backward = torch.autograd.grad(loss(model(images), labels), list(model.parameters()))
        by_hand = gradient(W, b, x, labels)
        gradients = max(float((g - h).abs().max()) for g, h in zip(backward, by_hand, strict=True))
        losses, weights = learn(model, options, images, labels)
        for _ in range(options.steps):
            gW, gb = gradient(W, b, x, labels)
            W, b = W - options.lr * gW, b - options.lr * gb
        trained = float((W - weights[-1]).abs().max())
        moved = weights[-1] - weights[0]
        dark = float(moved[:, DARK].abs().max())
        centre = float((moved[:, CENTRE] - (model.get_parameter("1.bias").detach() - b_before)).abs().max())
        print(f"gradient by hand against backward: {gradients:.0e}; weights after {options.steps} steps of each: {trained:.0e}")
        print(f"weights of the two pixels that no pattern lights moved by {dark}; centre against bias: {centre:.0e}")

        noisy = network(options, options.seed)
        learn(noisy, options, *patterns(100, options.noise, options.seed + 1).batch(slice(None), torch.float64))
        names = ("trained on clean patterns", "trained on noisy ones", "nearest pattern: best possible")
        answers = (model, noisy, lambda pictures: pictures.flatten(1) @ x.T)
        curves = dict(zip(names, zip(*(at_noise(options, answers, noise) for noise in NOISES), strict=True), strict=True))
        here, here_trained, best = at_noise(options, answers, options.noise)
        print(f"noise {options.noise:g}: {here:.1%} recognised, {here_trained:.1%} if trained with noise, {best:.1%} at best")

        right = moved_bars(options, images, labels)
        print(f"bars moved aside by one pixel: {sum(right)} of {len(right)} recognised, from {options.seeds} initial weights")

        record.curve("loss", range(len(losses)), losses)
        record.figure("smallest", draw_learning(losses, weights, by_hand[0]))
        record.figure("smallest_unseen", draw_unseen(curves, model(unseen()).detach().softmax(1)))
        clean, shifted = accuracy(model(images), labels), sum(right) / len(right)
        exact = max(gradients, trained, centre) < 1e-12 and dark == 0
        holds = exact and clean == 1 and here > best - 0.03 and shifted < 0.1
        return record.verdict(SmallestVerdict(holds, gradients, trained, dark, centre, clean, here, here_trained, best, shifted))


if __name__ == "__main__":
    command(main)
