"""What happens around the steps of a run: logs, checkpoints, signals, and going on after any end.

Only the first process of a group writes. Times, which differ between two runs, have the tag `speed/...` and never enter metrics.csv.
"""

import contextlib
import dataclasses
import signal
import tempfile
import time
from pathlib import Path

from torch import nn

from cnn425.lab import checkpoint, figures, guards
from cnn425.lab.board import Board, event_files, layer_name
from cnn425.lab.errors import LabError, StoppedError, sentence
from cnn425.lab.folder import Metrics, describe, home, lengths, locked, rewind
from cnn425.lab.group import joined, under_torchrun
from cnn425.lab.options import Options, as_words, changed, difference, digest, meaning, run_name, with_paths
from cnn425.lab.pictures import Pictures
from cnn425.lab.progress import Reporter, in_a_shell, say
from cnn425.lab.signals import CODES, Signals
from cnn425.lab.training import HELD_OUT_BATCH, Evaluation, Training, Verdict, settings


def default_folder(experiment: str, name: str, options: Options) -> Path:
    """`runs/<experiment>/<name>-<layers>-seed-<seed>-...`: other options, other folder; the same options again resume."""
    return Path("runs", experiment, run_name(options, name))


def show_board(folder: Path) -> None:
    """The line that opens TensorBoard on what was just written: what to do next."""
    say(f"next: tensorboard --logdir {in_a_shell(folder)}     (then open http://localhost:6006)")


def train(options: Options, model: nn.Sequential, training: Pictures, held_out: Pictures, folder: Path, title: str = "training") -> Verdict:
    """Train the model, or go on where the run in this folder stopped, or tell what came out if it has finished."""
    with contextlib.ExitStack() as stack:
        if options.dry_run:
            options = dataclasses.replace(options, epochs=1)
            training, held_out = training.first(2 * options.batch_size), held_out.first(2 * options.batch_size)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = with_paths(options, Path.absolute)  # of now, wherever the process goes meanwhile
        group = stack.enter_context(joined(options.device))
        stack.enter_context(settings(options, group.rank))
        signals = stack.enter_context(Signals())
        if group.first:
            folder = home(folder, "run", f"run-{digest(meaning(options))}")
            if options.resume and folder != options.resume:
                raise LabError(f"--resume {options.resume}: this is not the folder of a run", 2)
            stack.enter_context(locked(folder, patience=10 if under_torchrun() else 0))  # a dying worker may still be saving
        folder = group.from_first(folder)
        run = Training(options, model, training, held_out, group, folder)
        stack.callback(setattr, run, "network", model)  # one that several processes share must be gone before their group
        return Loop(run, signals, title).run()


class Loop:
    """What happens around the steps: logs, checkpoints, signals. Only the first process writes."""

    def __init__(self, run: Training, signals: Signals, title: str):
        self.training, self.signals, self.title, self.first = run, signals, title, run.group.first
        self.metrics: Metrics | None = None
        self.board: Board | None = None

    def run(self) -> Verdict:
        """Everything from the first step, or the one after the checkpoint, to the verdict."""
        run = self.training
        self.resume()
        if run.at.finished:
            if self.first:
                say(f"{self.title}: already finished in {run.folder}; remove the folder or choose another --log-dir to train again")
            return run.verdict()
        try:
            self.open()
            total = run.order.batches * run.options.epochs
            with Reporter(self.title, total, run.at.step, silent=not self.first) as self.reporter:
                self.steps()
        except OSError as error:
            raise LabError(f"stopped at step {run.at.step}: {sentence(error)}; {self.what_is_kept()}") from None
        except guards.NotFiniteError as error:
            self.save()
            run.group.wait()  # torchrun ends all processes as soon as one has ended: not while the first is saving
            kept = next(iter(checkpoint.checkpoints(run.folder)), run.folder)
            raise StoppedError(
                f"{error}; kept {kept} from before it; the same command would stop here again, so try a lower --lr, or --clip, in another "
                "--log-dir"
            ) from None
        finally:
            self.close()
        return run.verdict()

    def resume(self) -> None:
        """Load the newest whole checkpoint, if there is one and it was made with these options."""
        run = self.training
        state = checkpoint.newest(run.folder, say) if self.first else None
        state = run.group.from_first(state)
        if state is None:
            if self.first:
                rewind(run.folder, {})
            return
        if state["digest"] != digest(meaning(run.options)):
            changed = difference(state["options"], meaning(run.options))
            raise LabError(
                f"{run.folder} holds a run with other options ({changed}); choose another --log-dir, or the same options to resume", 2
            )
        run.load_state_dict(state)
        different = run.adapt(state.get("surroundings", {}))
        if different and self.first and not run.at.finished:
            say(f"warning: the run was started with other surroundings ({different}); the results may differ in rounding")
        if self.first and not run.at.finished:
            rewind(run.folder, state["files"])
            say(f"{self.title}: resuming after step {run.at.step} from {run.folder}")

    def open(self) -> None:
        """Open the logs; at the very start of a run, log the untrained network."""
        run = self.training
        if self.first:
            if not run.at.begun:
                describe(run.folder, as_words(run.options))
            self.metrics = Metrics(run.folder)
            self.board = Board(run.folder, purge_step=run.at.step + 1 if run.at.begun else None)
        self.clock, self.clock_images = time.monotonic(), 0
        self.saved = time.monotonic()
        if run.at.begun:
            return
        run.at.begun = True
        result = run.evaluate(run.held_out)
        run.at.held_out_loss, run.at.held_out_accuracy = result.loss, result.accuracy
        if self.board:
            self.board.layout()
            results = {"loss/held-out": result.loss, "accuracy/held-out": result.accuracy}
            self.board.hyper_parameters(meaning(run.options), results, first=["layers", "seed", *changed(run.options)])
            self.board.graph(run.shown, run.held_out.batch(slice(0, 1), run.dtype)[0])
        self.log_evaluation(result)

    def steps(self) -> None:
        """All epochs that are left."""
        run = self.training
        while not run.at.finished and run.options.epochs:
            while not run.order.epoch_is_over:
                indices = run.order.current()
                row = run.step(indices)
                run.order.advance()
                self.clock_images += len(indices)
                self.log_step(row)
                if self.early() or run.order.epoch_is_over:
                    self.log_gradients()
                self.log_early()
                self.between_steps()
            result = run.finish_epoch()
            self.log_evaluation(result)
            if self.milestone(run.at.epoch):
                self.report_epoch(result)
            if run.at.finished and run.at.epoch < run.options.epochs:
                self.reporter.say(
                    f"{self.title}: stopped early, the held-out loss has not fallen for {run.at.epochs_without_better} epochs"
                )
            if not run.at.finished:
                run.at.seen, run.at.loss, run.at.correct = 0, 0.0, 0
                run.order.next_epoch()
            self.save()

    def milestone(self, epoch: int) -> bool:
        """Whether this epoch is one of the ten or so that get pictures, histograms and a line of text; short runs show all of theirs."""
        at, epochs = self.training.at, self.training.options.epochs
        return at.finished or epoch == epochs or epoch % -(-max(1, epochs) // 10) == 0

    def between_steps(self) -> None:
        """Save if it is time; save and end if a signal came to any of the processes."""
        run = self.training
        due = self.first and time.monotonic() - self.saved > run.options.checkpoint_seconds
        caught, save = int(self.signals.caught or 0), int(due)
        if run.group.world > 1:
            caught, save = (max(numbers) for numbers in zip(*run.group.gathered((caught, save)), strict=True))
        if caught or save:
            self.save()
        if caught:
            run.group.wait()
            name = signal.Signals(caught)
            raise StoppedError(
                f"stopped by {name.name} after step {run.at.step} (epoch {run.at.epoch + 1}); {self.what_is_kept()}", CODES[name]
            )

    def save(self) -> None:
        """Logs to the disk, then a checkpoint that knows how long they are."""
        run = self.training
        state = run.state_dict()
        self.saved = time.monotonic()
        if self.metrics and self.board and not run.options.dry_run:
            self.metrics.flush()
            self.board.flush()
            files = lengths([self.metrics.path, *event_files(run.folder)])
            checkpoint.save(run.folder, run.at.step, {**state, "files": files})

    def what_is_kept(self) -> str:
        """Where the work is, in words."""
        kept = next(iter(checkpoint.checkpoints(self.training.folder)), None)
        return f"kept {kept}; the same command goes on from there" if kept else f"nothing is kept in {self.training.folder} yet"

    def log_step(self, row: dict[str, float]) -> None:
        """A row of metrics.csv for every step, points of the curves for some."""
        self.reporter.advance(f"loss {row['train_loss']:.4f}")
        if self.metrics:
            self.metrics.write(**row)
        if self.board and (self.training.at.step % self.training.options.log_every == 0 or self.training.at.step == 1):
            for tag, column in (
                ("loss/train", "train_loss"),
                ("accuracy/train", "train_accuracy"),
                ("gradient norm/all", "gradient_norm"),
                ("learning rate", "learning_rate"),
            ):
                self.board.scalar(tag, row[column], self.training.at.step)

    def early(self) -> bool:
        """Whether more is written down after this step of the first epoch: 1, 2, 4, 8, ... and, if it is long, every sixteenth of it."""
        run, step = self.training, self.training.at.step
        return not run.at.epoch and (not step & (step - 1) or step % max(64, run.order.batches // 16) == 0)

    def log_early(self) -> None:
        """Held-out points in the first epoch, where most is learnt; of the first pictures only, to be quick."""
        run, step = self.training, self.training.at.step
        if not self.early() or run.order.epoch_is_over or step < 4:
            return
        result = run.evaluate(run.held_out.first(HELD_OUT_BATCH))
        if self.board:
            self.board.scalar("loss/held-out", result.loss, step)
            self.board.scalar("accuracy/held-out", result.accuracy, step)

    def log_gradients(self) -> None:
        """How the gradient of the last step was distributed, layer by layer."""
        gradients = self.training.gradients()
        if not self.board:
            return
        for name, gradient in ((layer_name(self.training.shown, key), gradient) for key, gradient in gradients.items()):
            self.board.scalar(f"gradient norm/{name}", float(gradient.norm()), self.training.at.step)
            if self.early() or self.milestone(self.training.at.epoch + 1):
                self.board.histogram(f"gradients/{name}", gradient, self.training.at.step)

    def log_evaluation(self, result: Evaluation) -> None:
        """Held-out numbers, histograms and pictures; at the end of an epoch and before the first."""
        run, step = self.training, self.training.at.step
        shown = run.gather_shown() if self.milestone(run.at.epoch) else None
        if not (self.metrics and self.board):
            return
        self.metrics.write(step=step, epoch=run.at.epoch, held_out_loss=result.loss, held_out_accuracy=result.accuracy)
        self.board.scalar("loss/held-out", result.loss, step)
        self.board.scalar("accuracy/held-out", result.accuracy, step)
        if step:
            seconds = max(1e-9, time.monotonic() - self.clock)
            self.board.scalar("speed/images per second", self.clock_images / seconds, step)
        if shown:
            for name, parameter in shown.named_parameters():
                self.board.histogram(f"weights/{layer_name(shown, name)}", parameter, step)
            self.log_pictures(shown, result)
        self.board.flush()
        self.metrics.flush()

    def log_pictures(self, shown: nn.Sequential, result: Evaluation) -> None:
        """First-layer filters and activations, misclassified pictures, the confusion matrix."""
        run, step = self.training, self.training.at.step
        if not self.board:
            return
        example = run.held_out.batch(slice(0, 1), run.dtype)[0]
        shapes = figures.filters(shown, example.shape)
        self.board.image("first layer/filters", figures.tiled(figures.stretched(shapes), zoom=max(1, 64 // shapes.shape[-1])), step)
        answers = figures.activations(shown, example)
        if answers is not None:
            self.board.image(
                "first layer/activations",
                figures.tiled(figures.stretched(answers, symmetric=False), zoom=max(1, 64 // answers.shape[-1])),
                step,
            )
        labels = run.held_out.labels.cpu()
        counts = figures.confusion(labels, result.predictions.cpu(), len(run.held_out.classes))
        self.board.figure("held-out/confusion", figures.confusion_figure(counts, run.held_out.classes), step)
        mistakes = figures.mistakes_figure(run.held_out, result.predictions.cpu())
        if mistakes is not None:
            self.board.figure("held-out/misclassified", mistakes, step)

    def report_epoch(self, result: Evaluation) -> None:
        """One line per epoch, and the clock for the speed starts again."""
        at = self.training.at
        seconds = time.monotonic() - self.clock
        self.reporter.say(
            f"{self.title}: epoch {at.epoch} of {self.training.options.epochs}: "
            f"train loss {at.loss / at.seen:.4f}, accuracy {at.correct / at.seen:.2%}; "
            f"held-out loss {result.loss:.4f}, accuracy {result.accuracy:.2%}  ({seconds:.1f} s)"
        )
        self.clock, self.clock_images = time.monotonic(), 0

    def close(self) -> None:
        """Close the logs, on any exit."""
        for log in (self.metrics, self.board):
            if log:
                with contextlib.suppress(OSError):
                    log.close()
