"""Writes the event file of a run for TensorBoard, in the calling thread, so that errors reach the caller."""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from training.files import not_written


class EventWriter:
    """Writes a new event file into a folder, which is made if needed."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Begin the file. TensorBoard ignores events of earlier files from `purge_step` on. Raises NotWritten."""
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise not_written(self._path, error.strerror) from error
        self._records = RecordWriter(self)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, summary: Summary) -> None:
        """Add a number or a picture, made by `torch.utils.tensorboard.summary`. Raises NotWritten."""
        self._add(Event(step=step, summary=summary))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """Append a record completely or not at all: readers stop at half a record."""
        end = self._file.tell()
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            self._file.truncate(end)
            raise not_written(self._path, error.strerror) from error
