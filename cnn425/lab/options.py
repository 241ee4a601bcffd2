"""Options: every number that can change a result, in one frozen dataclass; its fields are the `--help`, options.json and the HParams entry.

An experiment inherits `Options` and adds its own fields, or changes a default:

    @dataclass(frozen=True)
    class PatternOptions(Options):
        noise: float = 0.0
        '''Standard deviation of the noise added to every pixel, in units of pixel brightness (0 to 1).'''

    options = parse(PatternOptions, argv)

`--help` shows the docstring of the experiment, and once the options are read its first line is said: the claim.
"""

import dataclasses
import hashlib
import json
import math
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import tyro

from cnn425.lab.errors import LabError, expanded
from cnn425.lab.progress import module_of, opening

# These say where and how often, never what comes out.
BOOKKEEPING = ("log_dir", "resume", "data_dir", "download", "checkpoint_seconds", "dry_run", "seeds")


@dataclass(frozen=True)
class Options:
    """What every training run can be told."""

    layers: Literal["custom", "torch"] = "custom"
    """Whose layers and loss: this project's, or the ones built into torch. Same initial weights, same batches."""
    epochs: int = 1
    """How often every training example is seen."""
    batch_size: int = 64
    """Examples per step, over all processes together."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Plain gradient descent, or Adam."""
    lr: float = 0.005
    """Learning rate; with the one-cycle schedule, its peak."""
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    """The learning rate stays, or rises from a fiftieth of it and falls to zero."""
    warmup: float = 0.1
    """The share of all steps, from 0 to 1, in which the one-cycle schedule rises."""
    clip: float = 0.0
    """Largest norm a gradient may have; longer ones are shortened to it. 0: never."""
    patience: int = 0
    """Stop early after so many epochs without a lower held-out loss. 0: never."""
    seed: int = 0
    """Fixes the initial weights, the data order and any noise."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""
    threads: int = 0
    """CPU threads per process. 0: torch's own choice."""
    amp: Literal["off", "bf16"] = "off"
    """Let torch.autocast compute matrix products in bfloat16."""
    compile: bool = False
    """Let torch.compile fuse the network."""
    channels_last: bool = False
    """Store images and filters with the channel as the fastest index."""
    shard: bool = False
    """Under torchrun, split the weights of locally connected layers over the processes, by position, instead of copying them."""
    log_dir: Path | None = None
    """The run folder; the same command again resumes the run. Default: a folder under runs/ named after these options."""
    resume: Path | None = None
    """Go on with the run in this folder, with the options it was started with; they need not be repeated."""
    log_every: int = 10
    """Steps between two points of the TensorBoard curves (metrics.csv has every step)."""
    checkpoint_seconds: float = 60.0
    """Longest time between two checkpoints, in seconds; every epoch has one anyway."""
    dry_run: bool = False
    """Two batches of training, two of evaluation, in a temporary folder that is thrown away."""

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        at_least(self, epochs=0, batch_size=1, log_every=1, threads=0, patience=0, clip=0, checkpoint_seconds=0)
        if not 0 < self.warmup < 1:
            raise LabError(f"--warmup is {self.warmup}; it must be more than 0 and less than 1", 2)
        if not 0 < self.lr < math.inf:
            raise LabError(f"--lr is {self.lr}; a learning rate must be positive and finite", 2)


def at_least(options: Any, **least: float) -> None:
    """Refuses an option below its least value, in one line: `at_least(self, steps=1)`."""
    for name, bound in least.items():
        if not getattr(options, name) >= bound:  # NaN is refused too
            raise LabError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least {bound}", 2)


MOST_THREADS = 1024
LARGEST: dict[type, float] = {int: 2**32 - 1, float: 1e30}  # what every random generator takes, and what leaves float32 room for a step


def refuse_extremes(options: Any) -> None:
    """Refuse numbers beyond LARGEST, infinity and NaN, also in tuples."""
    for name in (field.name for field in dataclasses.fields(options)):
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            most = LARGEST.get(type(number))
            if most is not None and not abs(number) <= most:
                raise LabError(f"--{name.replace('_', '-')} is {number}; it must lie between {-most:.10g} and {most:.10g}", 2)


SomeOptions = TypeVar("SomeOptions", bound=Options)
Anything = TypeVar("Anything")


def parse(kind: type[SomeOptions], argv: Sequence[str] | None) -> SomeOptions:
    """The options typed on the command line (`None`) or given as a list of words; `--resume` brings those of a run that was begun."""
    options = parse_any(kind, argv)
    if options.resume is None:
        return options
    begun = dataclasses.replace(begun_with(kind, options.resume), log_dir=options.resume, resume=options.resume)
    options = parse_any(kind, argv, begun)
    if options.log_dir != options.resume:
        raise LabError(f"--resume {options.resume} and --log-dir {options.log_dir} name two run folders; leave out one", 2)
    return options


def begun_with(kind: type[SomeOptions], folder: Path) -> SomeOptions:
    """The options with which the run in this folder was begun, from its options.json."""
    try:
        kept: dict[str, Any] = json.loads((folder / "options.json").read_text())["options"]
        if not (kept and isinstance(kept, dict)):
            raise ValueError(kept)
        hints = get_type_hints(kind)
        foreign = sorted(set(kept) - set(hints))
    except OSError as error:
        raise LabError(f"--resume {folder}: there is no run to go on with ({folder / 'options.json'}: {error.strerror})", 2) from None
    except (ValueError, KeyError, TypeError):
        raise LabError(f"--resume {folder}: {folder / 'options.json'} is not what a run writes", 2) from None
    if foreign:
        raise LabError(f"--resume {folder}: this is a run of another experiment (--{foreign[0].replace('_', '-')} is unknown here)", 2)
    for name, value in kept.items():  # what JSON cannot tell apart
        if isinstance(value, list):
            kept[name] = tuple(value)
        elif value is not None and Path in get_args(hints[name]):
            kept[name] = Path(value)
    usual = kind()
    try:
        for name, value in kept.items():
            wanted = type(getattr(usual, name))
            if wanted in (bool, int, float, str) and not isinstance(value, (int, float) if wanted is float else wanted):
                raise TypeError(f"--{name.replace('_', '-')} {value}")
        return kind(**kept)
    except TypeError as error:
        raise LabError(f"--resume {folder}: {folder / 'options.json'} is not what a run writes ({error})", 2) from None


def parse_any(kind: type[Anything], argv: Sequence[str] | None, begun: Anything | None = None) -> Anything:
    """The options typed on the command line (`None`) or given as words, for any dataclass; `begun`: what is not typed stays as it is."""
    _, words = module_of(kind)
    command = program(kind)
    described = words.replace("-m experiments.", "-m cnn425.experiments.") if "cnn425.experiments" in (command or "") else words
    more: dict[str, Any] = {"prog": command, "description": described} | ({} if begun is None else {"default": begun})
    state = random.getstate()  # tyro draws from it, and it may be a notebook's
    try:
        options = with_paths(tyro.cli(kind, args=None if argv is None else list(argv), **more), expanded)
    finally:
        random.setstate(state)
    refuse_extremes(options)
    if getattr(options, "threads", 0) > MOST_THREADS:
        raise LabError(f"--threads is {getattr(options, 'threads', 0)}; it must be at most {MOST_THREADS}", 2)
    if begun is None:
        opening(words)
    return options


def program(kind: type) -> str | None:
    """What starts the experiment with these options, `python -m experiments.mnist`; None: it is a script, named by its file."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    module = kind.__module__ if kind.__module__ != "__main__" else main and main.name.removesuffix(".__main__")
    return module and f"python -m {module}"


def with_paths(options: Anything, change: Callable[[Path], Path]) -> Anything:
    """The options with every path changed, also those in tuples."""

    def changed(value: Any) -> Any:
        return tuple(map(changed, value)) if isinstance(value, tuple) else change(value) if isinstance(value, Path) else value

    named: Any = options
    return dataclasses.replace(named, **{field.name: changed(getattr(named, field.name)) for field in dataclasses.fields(named)})


def as_words(options: Options) -> dict[str, Any]:
    """Every option as JSON can hold it."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(options).items()}


def meaning(options: Options) -> dict[str, Any]:
    """The options that can change the result; a run may be resumed only if all of them are the same."""
    return {name: value for name, value in as_words(options).items() if name not in BOOKKEEPING}


def changed(options: Options) -> dict[str, Any]:
    """The options that can change the result and are not the experiment's defaults."""
    usual = meaning(type(options)())
    return {name: value for name, value in meaning(options).items() if value != usual[name]}


def run_name(options: Options, *first: str) -> str:
    """What a run is called: the words, whose layers, the seed, then every other option that was changed: `conv-custom-seed-0-lr-0.01`."""
    words = [*first, options.layers, "seed", str(options.seed)]
    for name, value in changed(options).items():
        if name not in ("layers", "seed", *first) and value not in first:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [name.replace("_", "-"), *map(str, values)]
    name = "-".join(words)
    plain = re.fullmatch(r"[\w.+-]{1,80}", name, re.ASCII) is not None
    return name if plain else f"{'-'.join((*first, options.layers))}-{digest(meaning(options))}"


def digest(words: dict[str, Any]) -> str:
    """Eight characters that differ when any option differs."""
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:8]


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The options that differ, as `--lr 0.1 -> 0.2, --seed 0 -> 1`."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"--{name.replace('_', '-')} {before.get(name)} -> {now.get(name)}" for name in names)
