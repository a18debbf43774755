"""tensorboardX's SummaryWriter over an event file of our own."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.writer import FileWriter

from sweep.tensorboard.event_file import EventFile


class _FileWriter(FileWriter):
    """tensorboardX's FileWriter without the thread that its `__init__` starts, which is not called."""

    def __init__(self, file: EventFile) -> None:
        self.event_writer = file
        self._default_metadata: dict[str, Any] = {}


class Writer(SummaryWriter):
    """tensorboardX's SummaryWriter, which writes to an EventFile instead of its own queue.

    tensorboardX has no public way to set the file, so this overrides `_get_file_writer`, through which all of its
    methods write.
    """

    file_writer: FileWriter | None
    all_writers: dict[str, FileWriter] | None

    def __init__(self, folder: Path) -> None:
        self.file = EventFile(folder)
        super().__init__(str(folder))

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _FileWriter(self.file)
            self.all_writers = {self.file.get_logdir(): self.file_writer}
        return self.file_writer

    def points(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars in one record, in a fifth of the time that one `add_scalar` per value takes."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._get_file_writer().add_summary(summary, step)

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Writes an image, uint8 (H, W, 3), as a PNG with less compression than `add_image` uses: half the time, 15 %
        more bytes."""
        packed = io.BytesIO()
        Image.fromarray(picture).save(packed, "PNG", compress_level=1)
        height, width, _ = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=packed.getvalue())
        self._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def graph(self, drawn: tuple[Any, Any]) -> None:
        """Writes a network's GraphDef and StepStats."""
        self._get_file_writer().add_graph(drawn)

    def hparams(self, tag: str, **content: Any) -> None:
        """Writes one of the three summaries that the HParams plugin reads: experiment, session start or session end."""
        data = HParamsPluginData(version=0, **content).SerializeToString()
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="hparams", content=data))
        summary = Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata)])
        self._get_file_writer().add_summary(summary)
