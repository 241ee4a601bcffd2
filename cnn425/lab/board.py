"""TensorBoard, and the only file that knows it: one event file per start of a run, written in step with the run (no thread, no queue).

The name of an event file is the number of the start, not the time, because TensorBoard reads the files in the order of their names and
clocks jump. After a resume the earlier files end at the checkpoint (folder.py cuts them) and the new one tells TensorBoard to forget what
it may already have read (`purge_step`).
"""

import struct
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from tensorboard.compat.proto import attr_value_pb2, event_pb2, graph_pb2, node_def_pb2, tensor_shape_pb2, versions_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard import summary

from cnn425.lab.errors import about
from cnn425.lab.folder import EVENTS, claim, ours, sync
from cnn425.lab.models import hooked, looked_at

# The custom-scalars page, in the order in which a run is read; the time-series page sorts by the alphabet.
CHARTS: dict[str, dict[str, list[Any]]] = {
    "loss": {"mean cross entropy, nats": ["Multiline", ["loss/train", "loss/held-out"]]},
    "accuracy": {"share of right answers": ["Multiline", ["accuracy/train", "accuracy/held-out"]]},
    "gradient": {"norm": ["Multiline", ["gradient norm/all"]]},
    "learning rate": {"learning rate": ["Multiline", ["learning rate"]]},
    "speed": {"images per second": ["Multiline", ["speed/images per second"]]},
}


def event_files(folder: Path) -> list[Path]:
    """The event files of a run, oldest first; those of another program in the same folder are not among them."""
    return ours(folder, EVENTS)


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Every point of every curve of a run, in the order it was written: (tag, step, value)."""
    points = []
    for path in event_files(folder):
        content, place = path.read_bytes(), 0
        while place + 12 <= len(content):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            points += [(value.tag, event.step, value.simple_value) for value in event.summary.value if value.HasField("simple_value")]
            place += length + 16
    return points


class Board:
    """Everything TensorBoard shows of one run; every call names the step it belongs to."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        there = [path.name for path in folder.iterdir() if EVENTS.fullmatch(path.name)]
        start = 1 + max((int(name.split(".")[3]) for name in there), default=0)
        self.path = claim(folder, f"events.out.tfevents.{start:010d}.cnn425")
        self.file = self.path.open("xb")
        self.records = RecordWriter(self.file)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(event_pb2.Event(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with about(self.path):
            self.records.write(event.SerializeToString())

    def _summary(self, content: Any, step: int) -> None:
        self._write(event_pb2.Event(step=step, summary=content))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._summary(summary.scalar(tag, value), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """How the values are distributed, in 64 equal bins between the smallest and the largest."""
        values = values.detach().float().flatten().cpu()
        values = values[values.isfinite()]
        if len(values):
            self._summary(summary.histogram(tag, values.numpy(), bins=64), step)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture `(H, W)` or `(3, H, W)` with brightness from 0 to 1."""
        pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        self._summary(summary.image(tag, pixels.numpy(), dataformats="HW" if picture.ndim == 2 else "CHW"), step)

    def figure(self, tag: str, figure: Any, step: int) -> None:
        """A matplotlib figure."""
        figure.canvas.draw()
        self._summary(summary.image(tag, numpy.asarray(figure.canvas.buffer_rgba())[..., :3], dataformats="HWC"), step)

    def text(self, tag: str, words: str, step: int) -> None:
        """Markdown."""
        self._summary(summary.text(tag, words), step)

    def graph(self, model: nn.Module, images: Tensor) -> None:
        """The layers of a model and what flows between them, from one forward pass."""
        definition = graph_pb2.GraphDef(node=_nodes(model, images), versions=versions_pb2.VersionDef(producer=22))
        self._write(event_pb2.Event(graph_def=definition.SerializeToString()))

    def layout(self, charts: Mapping[str, Mapping[str, Any]] = CHARTS) -> None:
        """What the custom-scalars page shows: by heading, charts of several curves, or of a curve with its margin (value, lower, upper)."""
        self._summary(summary.custom_scalars(charts), 0)

    def hyper_parameters(self, options: Mapping[str, Any], results: Mapping[str, float], first: Collection[str] = ()) -> None:
        """The row of this run in the HParams page; the options in `first` come first, `results` are tags of curves that the run writes."""
        values = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in options.items()}
        experiment, *rest = summary.hparams(values, dict(results))
        kept = experiment.value[0].metadata.plugin_data
        described = plugin_data_pb2.HParamsPluginData.FromString(kept.content)
        for option in described.experiment.hparam_infos:
            option.differs = option.name in first  # TensorBoard sorts by this, then by the alphabet
        kept.content = described.SerializeToString()
        for content in (experiment, *rest):
            self._summary(content, 0)

    def flush(self) -> None:
        """Hand everything to the disk."""
        sync(self.file, self.path)

    def close(self) -> None:
        """Flush and close; may be called twice."""
        self.file.close()


def layer_name(model: nn.Module, parameter: str) -> str:
    """A parameter under the name that its layer has in the graph: `0.weight` is `Conv2d_0/weight`."""
    layer, _, name = parameter.rpartition(".")
    return f"{type(model.get_submodule(layer)).__name__}_{layer}/{name}"


def _nodes(model: nn.Module, images: Tensor) -> list[Any]:
    """A node per layer that has no layers inside, joined by the tensors they hand on."""
    made_by: dict[int, str] = {id(images): "images"}
    alive = [images]  # an id is only meaningful while its tensor lives
    nodes = [node_def_pb2.NodeDef(name="images", op="Input", attr={"_output_shapes": _shapes(images)})]

    def record(place: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, sources = f"{type(module).__name__}_{place}", [made_by[id(x)] for x in inputs if id(x) in made_by]
        attributes = {"_output_shapes": _shapes(output), "layer": attr_value_pb2.AttrValue(s=repr(module).encode())}
        for key, parameter in module.named_parameters(recurse=False):
            nodes.append(node_def_pb2.NodeDef(name=f"{name}/{key}", op="Parameter", attr={"_output_shapes": _shapes(parameter)}))
            sources.append(f"{name}/{key}")
        nodes.append(node_def_pb2.NodeDef(name=f"{name}/output", op=type(module).__name__, input=sources, attr=attributes))
        made_by[id(output)] = f"{name}/output"
        alive.append(output)

    with looked_at(model), hooked(model, record):
        model(images)
    return nodes


def _shapes(tensor: Tensor) -> Any:
    sides = [tensor_shape_pb2.TensorShapeProto.Dim(size=side) for side in tensor.shape]
    shapes = [tensor_shape_pb2.TensorShapeProto(dim=sides)]
    return attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(shape=shapes))
