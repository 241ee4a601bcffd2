"""Whatever hits a training run, the same command again ends with the bits of an undisturbed one.

    python scripts/fault_injection.py                 (50 kills and everything else; some minutes on two CPU cores)
    python scripts/fault_injection.py --kills 4       (the quick version that the tests run; --only kills,clock to choose)

Each run is a process of its own, forked from this one, which has trained once: importing torch and what else training needs is paid once.
So are torchrun and its workers. A run trains on three patterns, so no data is needed. Compared are weights, optimiser, random states,
metrics.csv to the byte, and every point of every TensorBoard curve except the measured speed. A fault that is not survived to the bit must
end with the one sentence that was promised; anything else is a failure, and the exit code is 1.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that forks must not have threads
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # autograd starts a thread per GPU, also of a network that is on none

import contextlib
import functools
import io
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import tyro
from rich.table import Table
from torch.distributed import run as launcher

from cnn425.lab import checkpoint
from cnn425.lab.board import scalars
from cnn425.lab.errors import LabError, command
from cnn425.lab.folder import write_whole
from cnn425.lab.options import at_least
from cnn425.lab.progress import opening, say_table
from cnn425.lab.verdict import Finding, conclude
from experiments import mnist

WORDS = [
    *("--dataset", "patterns", "--examples", "480", "--model", "linear"),
    *("--batch-size", "16", "--epochs", "2", "--checkpoint-seconds", "0.05"),
]
Outcome = tuple[dict[str, torch.Tensor], object, object, bytes, list[tuple[str, int, float]]]


@dataclass(frozen=True)
class FaultOptions:
    """What to inject."""

    kills: int = 50
    """How many kill -9 at random moments."""
    seed: int = 0
    """Of the random moments and places."""
    only: str = ""
    """Comma-separated names of faults; empty: all."""
    folder: Path | None = None
    """Where runs are written; a temporary folder by default."""


@dataclass
class Report:
    """A line per fault: what was done, how it ended."""

    lines: list[tuple[str, str, bool]] = field(default_factory=list)

    def add(self, fault: str, ended: str, good: bool) -> None:
        """Note one fault and say it at once."""
        self.lines.append((fault, ended, good))
        print(f"{'ok  ' if good else 'FAIL'} {fault}: {ended}", flush=True)


# ---- Runs ------------------------------------------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Train a little, so that what torch, numba and matplotlib do at their first call is done before the first fork."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        mnist.main([*WORDS, "--examples", "32", "--epochs", "1", "--log-dir", folder])


def speak_into(folder: Path) -> None:
    """From now on, what this process and its children say goes to <folder>.out."""
    log = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def start(folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a process that trains in this folder after `prepare`; its output goes to <folder>.out; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    speak_into(folder)
    code = 99
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run that starts with SIGINT ignored, as in the background, ignores it
    try:
        prepare()
        command(lambda: mnist.main([*WORDS, "--log-dir", str(folder)]))
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(folder: Path, prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """A whole run: exit code and output of this run."""
    out = Path(f"{folder}.out")
    before = out.stat().st_size if out.exists() else 0
    code = ended(start(folder, prepare))
    return code, out.read_bytes()[before:].decode()


def outcome(folder: Path) -> Outcome:
    """Everything that must be the same."""
    state = checkpoint.read(checkpoint.checkpoints(folder)[0])
    curves = [point for point in scalars(folder) if not point[0].startswith("speed")]
    random_states = [(s["torch"].tolist(), s["python"], s["numpy"][0], s["numpy"][1].tolist(), s["numpy"][2:]) for s in state["random"]]
    return state["model"], state["optimizer"], random_states, (folder / "metrics.csv").read_bytes(), curves


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs ended with the same bits."""
    try:
        torch.testing.assert_close(one[:2], other[:2], rtol=0, atol=0)
    except AssertionError:
        return False
    return one[2:] == other[2:]


class Scene:
    """The undisturbed run, and a fresh folder for each fault."""

    def __init__(self, folder: Path, report: Report, seed: int):
        self.folder, self.report, self.random, self.count = folder, report, random.Random(seed), 0
        warm_up()
        begun = time.monotonic()
        code, words = run(folder / "undisturbed")
        assert code == 0, words
        self.seconds = time.monotonic() - begun
        self.wanted = outcome(folder / "undisturbed")

    def fresh(self) -> Path:
        """A folder that does not exist yet."""
        self.count += 1
        return self.folder / f"run{self.count}"

    @functools.cached_property
    def two(self) -> tuple[Outcome, float]:
        """An undisturbed run of two processes and its seconds; made when the first fault needs it."""
        whole, begun = self.fresh(), time.monotonic()
        code_of(torchrun(whole))
        return outcome(whole), time.monotonic() - begun

    def judge(self, fault: str, folder: Path, remark: str = "", good: bool = True) -> None:
        """Run once more, undisturbed, and compare."""
        code, words = run(folder)
        alike = code == 0 and same(outcome(folder), self.wanted)
        self.report.add(fault, f"{remark}{'bit-identical' if alike else f'DIFFERENT, exit code {code}: {words[-300:]}'}", alike and good)


def killed_at_random(scene: Scene, kills: int) -> None:
    """Kill -9 at random moments; a run gets up to five, one after the other."""
    left = kills
    while left:
        folder, hits = scene.fresh(), 0
        while hits < min(left, 5):
            child = start(folder)
            time.sleep(scene.random.uniform(0.02, scene.seconds))
            os.kill(child, signal.SIGKILL)
            if ended(child) != -signal.SIGKILL:
                break  # it had come to its end before
            hits += 1
        left -= hits
        if hits:
            scene.judge(f"{hits} kills at random moments", folder)


def killed_inside_save(scene: Scene) -> None:
    """Kill -9 by the run itself in the middle of a save: before the sync, before the rename, after it, between removing old files."""
    for name in ("write", "fsync", "replace", "unlink"):
        for place in (2, 7):
            folder = scene.fresh()
            code, _ = run(folder, lambda name=name, place=place: die_in(name, place))  # type: ignore[misc]
            scene.judge(f"kill inside a save, {name} number {place}", folder, "" if code == -signal.SIGKILL else "was not killed; ")


def die_in(name: str, place: int) -> None:
    """From now on, the `place`-th call of this function kills the process: with half a file for a write, else before it happens."""
    calls = [0]

    def count() -> bool:
        calls[0] += 1
        return calls[0] == place

    if name == "write":

        def half(path: Path, content: bytes) -> None:
            if count():
                (path.parent / f".{path.name}.{os.getpid()}.part").write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write_whole(path, content)

        checkpoint.write_whole = half  # type: ignore[attr-defined]
        return
    home, attribute = (Path, "unlink") if name == "unlink" else (os, name)
    real = getattr(home, attribute)

    def deadly(*args: object, **named: object) -> object:
        if count():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)

    setattr(home, attribute, deadly)


def stopped_by_signals(scene: Scene) -> None:
    """SIGINT and SIGTERM once: exit code, one line, same bits. Twice: at once."""
    for number, code in 2 * ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        folder = scene.fresh()
        child = start(folder, lambda folder=folder: wait_at_first_save(folder))  # type: ignore[misc]
        wait_for_checkpoint(folder)
        os.kill(child, number)
        flag(folder).touch()
        got = ended(child)
        words = Path(f"{folder}.out").read_text()
        scene.judge(
            f"{number.name}", folder, f"exit code {got}; ", got == code and f"stopped by {number.name}" in words and "kept" in words
        )


def wait_at_first_save(folder: Path) -> None:
    """From now on, whoever has written the first checkpoint waits for `flag`, so that a fault hits a run that is under way."""

    def write_and_wait(path: Path, content: bytes) -> None:
        write_whole(path, content)
        wait_until(flag(folder).exists)

    checkpoint.write_whole = write_and_wait  # type: ignore[attr-defined]


def flag(folder: Path) -> Path:
    """The file whose existence says that a run need not wait."""
    return Path(f"{folder}.go")


def wait_for_checkpoint(folder: Path) -> None:
    """Until the run has saved something."""
    wait_until(lambda: bool(checkpoint.checkpoints(folder)))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition came true in this time."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds


def interrupted(scene: Scene) -> Path:
    """A folder whose run was killed after its second checkpoint."""
    folder = scene.fresh()
    child = start(folder)
    wait_until(lambda: len(checkpoint.checkpoints(folder)) >= 2)
    os.kill(child, signal.SIGKILL)
    ended(child)
    return folder


def damaged(scene: Scene) -> None:
    """Truncated, bit-flipped and empty newest checkpoints: a warning, the one before, same bits."""

    def cut(content: bytes) -> bytes:
        return content[: scene.random.randrange(len(content))]

    def flipped(content: bytes) -> bytes:
        place = scene.random.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << scene.random.randrange(8)]) + content[place + 1 :]

    for name, damage in (("truncated", cut), ("bit-flipped", flipped), ("emptied", lambda content: b"")):
        for both in (False, True):
            folder = interrupted(scene)
            for path in checkpoint.checkpoints(folder)[: 2 if both else 1]:
                path.write_bytes(damage(path.read_bytes()))
            scene.judge(f"{name} {'checkpoints, both' if both else 'newest checkpoint'}", folder, "", "is damaged" in newest_words(folder))


def newest_words(folder: Path) -> str:
    """What a run would say on starting here, without letting it touch the folder."""
    copy = folder.with_name(folder.name + "-copy")
    shutil.copytree(folder, copy)
    try:
        return run(copy)[1]
    finally:
        shutil.rmtree(copy)


def clock_jumps(scene: Scene) -> None:
    """The clock says something else at every start: 1970, 2100, an hour back, at random at every call."""
    real = time.time
    for name, clock in (
        ("1970", lambda: 0.0),
        ("2100", lambda: 4.1e9),
        ("an hour back", lambda: real() - 3600),
        ("another time at every call", lambda: random.Random().uniform(0, 4e9)),  # not the state that a run saves
    ):
        folder = interrupted(scene)
        for path in folder.iterdir():
            os.utime(path, (1, 1))

        def prepare(clock: Callable[[], float] = clock) -> None:
            time.time = clock

        child = start(folder, prepare)
        time.sleep(scene.seconds / 3)
        os.kill(child, signal.SIGKILL)
        ended(child)
        scene.judge(f"clock jumps to {name}", folder)


def two_processes(scene: Scene) -> None:
    """A second process on the same folder is told so; the first is not disturbed."""
    folder = scene.fresh()
    first = start(folder, lambda: wait_at_first_save(folder))
    wait_for_checkpoint(folder)
    code, words = run(folder)
    flag(folder).touch()
    told = code == 1 and "another process is training in this folder" in words
    good = ended(first) == 0
    scene.judge("two processes on one folder", folder, "the second was told; " if told else f"second: {code} {words}; ", told and good)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; needs the right to mount."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def full_disk(scene: Scene) -> None:
    """A disk that is full at some point, then has room again; and one that becomes read-only."""
    for name, size, change in (
        ("full disk, no room for the second checkpoint", "160k", "size=64m"),
        ("full disk, no room for anything", "16k", "size=64m"),
        ("read-only disk", "64m", "ro"),
    ):
        folder = scene.fresh()
        try:
            with small_disk(folder, size):
                if change == "ro":
                    run(folder, lambda: die_in("fsync", 9))
                    remount(folder, "ro")
                code, words = run(folder)
                line = words.strip().splitlines()[-1]
                told = code == 1 and ("the disk is full" in line or "read-only" in line) and "Traceback" not in words
                remount(folder, "rw" if change == "ro" else change)
                scene.judge(name, folder, f"'{line[:90]}'; ", told)
        except (OSError, subprocess.CalledProcessError):
            scene.report.add(name, "left out: this user may not mount a file system", True)


def remount(folder: Path, how: str) -> None:
    """Change a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True, capture_output=True)


# ---- Two processes under torchrun --------------------------------------------------------------------------------------------------------


def torchrun(folder: Path, *more: str, waiting: bool = False) -> ForkProcess:
    """Start two workers, in a process group of their own as a shell would; `waiting`: for a fault, at their first save."""
    run_of_two = multiprocessing.get_context("fork").Process(target=launch, args=(folder, more, waiting))
    run_of_two.start()
    return run_of_two


def launch(folder: Path, more: Sequence[str], waiting: bool) -> None:
    """Be torchrun, whose workers are forked, too; what they say goes to <folder>.out."""
    os.setsid()
    speak_into(folder)
    if waiting:
        wait_at_first_save(folder)
    forked = ["--start-method", "fork", "--run-path", str(Path(mnist.__file__).resolve())]
    launcher.main(["--standalone", "--nproc-per-node", "2", *more, *forked, *WORDS, "--log-dir", str(folder)])


def code_of(run_of_two: ForkProcess) -> int | None:
    """Wait for torchrun's end; its exit code, none if it goes on after five minutes."""
    run_of_two.join(300)
    return run_of_two.exitcode


def workers(run_of_two: ForkProcess) -> list[int]:
    """The processes that torchrun started, oldest first."""
    words = ["ps", "-o", "pid=", "--ppid", str(identity(run_of_two))]
    return [int(number) for number in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()]


def wait_for_workers(run_of_two: ForkProcess, folder: Path) -> list[int]:
    """The two workers, once they have saved something."""
    wait_for_checkpoint(folder)
    return workers(run_of_two)


def identity(run_of_two: ForkProcess) -> int:
    """Torchrun's process id."""
    assert run_of_two.pid is not None
    return run_of_two.pid


def gone(processes: Sequence[int]) -> bool:
    """Whether these processes end within half a minute."""
    return wait_until(lambda: not any(alive(number) for number in processes), 30)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for has no command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def judge_two(scene: Scene, fault: str, folder: Path, remark: str, good: bool, again: bool = True) -> None:
    """Run the two once more, undisturbed, and compare with two that were left alone."""
    if again:
        code_of(torchrun(folder))
    alike = same(outcome(folder), scene.two[0])
    words = Path(f"{folder}.out").read_text()
    scene.report.add(fault, f"{remark}; " + ("bit-identical" if alike else "DIFFERENT: " + words[-1500:]), alike and good)


def worker_killed(scene: Scene) -> None:
    """One of two workers dies: both end, with a message; the same command goes on to the same bits."""
    for name, victim in (("first", 0), ("second", 1)):
        folder = scene.fresh()
        run_of_two = torchrun(folder, waiting=True)
        os.kill(wait_for_workers(run_of_two, folder)[victim], signal.SIGKILL)
        flag(folder).touch()
        code = code_of(run_of_two)
        words = Path(f"{folder}.out").read_text()
        told = "has died" in words or "Signal 9" in words or "exitcode  : -9" in words
        judge_two(scene, f"one of two workers killed, the {name}", folder, f"exit code {code}{', told' * told}", code != 0 and told)


def worker_restarted(scene: Scene) -> None:
    """One of two workers dies and torchrun itself starts both again: they end with the same bits."""
    for name, victim in (("first", 0), ("second", 1)):
        folder = scene.fresh()
        run_of_two = torchrun(folder, "--max-restarts", "1", waiting=True)
        os.kill(wait_for_workers(run_of_two, folder)[victim], signal.SIGKILL)
        flag(folder).touch()
        code = code_of(run_of_two)
        resumed = "resuming after step" in Path(f"{folder}.out").read_text()
        remark = f"exit code {code}{', resumed by torchrun' * resumed}"
        judge_two(scene, f"worker killed with --max-restarts 1, the {name}", folder, remark, code == 0 and resumed, again=False)


def launcher_ended(scene: Scene) -> None:
    """Torchrun is killed, or gets SIGTERM, or Ctrl-C reaches it and its workers: these finish their step, save, and are gone."""
    for name, number in (("killed", signal.SIGKILL), ("SIGTERM", signal.SIGTERM), ("Ctrl-C", signal.SIGINT)):
        folder = scene.fresh()
        run_of_two = torchrun(folder, waiting=True)
        children = wait_for_workers(run_of_two, folder)
        (os.killpg if number == signal.SIGINT else os.kill)(identity(run_of_two), number)
        flag(folder).touch()
        code, ended_too = code_of(run_of_two), gone(children)
        told = Path(f"{folder}.out").read_text().count("; kept ") == 1
        remark = f"exit code {code}, workers {'saved and gone' if told and ended_too else 'NOT told or still there'}"
        judge_two(scene, f"torchrun: {name}", folder, remark, told and ended_too)


def killed_of_two(scene: Scene, kills: int) -> None:
    """Kill -9 of torchrun or of either worker, at random moments from its start to its end; a run gets up to five."""
    left = kills
    _, seconds = scene.two
    while left:
        folder, hits = scene.fresh(), 0
        while hits < min(left, 5):
            run_of_two = torchrun(folder)
            time.sleep(scene.random.uniform(0.02, seconds))
            processes = [identity(run_of_two), *workers(run_of_two)]
            if run_of_two.exitcode is not None:
                break
            os.kill(scene.random.choice(processes), signal.SIGKILL)
            code_of(run_of_two)
            gone(processes[1:])
            hits += 1
        left -= hits
        if hits:
            judge_two(scene, f"{hits} kills at random moments, torchrun or one of two workers", folder, "resumed", True)


def main(options: FaultOptions) -> Report:
    """Everything that was asked for, and the report."""
    report = Report()
    faults: dict[str, Callable[[Scene], None]] = {
        "kills": lambda scene: killed_at_random(scene, options.kills),
        "save": killed_inside_save,
        "signals": stopped_by_signals,
        "damage": damaged,
        "clock": clock_jumps,
        "two": two_processes,
        "disk": full_disk,
        "worker": worker_killed,
        "restart": worker_restarted,
        "launcher": launcher_ended,
        "pair": lambda scene: killed_of_two(scene, max(1, options.kills // 5)),
    }
    chosen = options.only.split(",") if options.only else list(faults)
    at_least(options, kills=0)
    if unknown := [name for name in chosen if name not in faults]:
        raise LabError(f"--only has no {', '.join(unknown)}; choose from {', '.join(faults)}", 2)
    if options.folder and options.folder.exists() and not (options.folder.is_dir() and not any(options.folder.iterdir())):
        raise LabError(f"--folder {options.folder} is not an empty folder; name another one", 2)
    opening(__doc__)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        scene = Scene(folder, report, options.seed)
        for name in chosen:
            faults[name](scene)
    good = sum(good for *_, good in report.lines)
    table = Table("fault", "ended")
    for fault, how, as_promised in report.lines:
        table.add_row(fault, how if as_promised else f"[red]{how}[/red]")
    say_table(table)
    conclude(Finding(good == len(report.lines), f"{good} of {len(report.lines)} faults ended as promised"), judged=bool(report.lines))
    print("next: docs/training.md says what is promised after each")
    return report


def judged() -> None:
    """The command: exit code 1 if a fault did not end as promised."""
    report = main(tyro.cli(FaultOptions, prog="python scripts/fault_injection.py", description=__doc__))
    raise SystemExit(0 if all(good for *_, good in report.lines) else 1)


if __name__ == "__main__":
    command(judged)
