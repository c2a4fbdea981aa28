"""A disk that is full from some write on, as everything that writes a run sees it."""

import builtins
import errno
import io
import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import safetensors.torch
from safetensors import SafetensorError


class FullDisk:
    """Lets so many writes through, and fails all others until it is switched off.

    Attributes
    ----------
    writes : int
        Writes that were asked for: data, new folders, new names, syncs.
    """

    def __init__(self, room: int | None) -> None:
        self.room = room
        self.writes = 0

    @property
    def is_full(self) -> bool:
        return self.room is not None and self.writes > self.room

    def ask(self) -> None:
        """Count a write; raise what the system says if there is no room for it."""
        self.writes += 1
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _File:
    """A file of which the last write stops half-way."""

    def __init__(self, file, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data):
        try:
            self._disk.ask()
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@contextmanager
def disk_with_room_for(room: int | None):
    """Yield a disk that is full after `room` writes; None for one that only counts."""
    disk = FullDisk(room)
    open_file, serialize = io.open, safetensors.torch.serialize_file

    def opened(file, mode="r", *arguments, **options):
        result = open_file(file, mode, *arguments, **options)
        return _File(result, disk) if set(mode) & set("wax+") else result

    def serialized(tensors, path, *arguments, **options):
        # Rust writes by itself, and tells in a type and with a text of its own.
        try:
            disk.ask()
        except OSError as error:
            Path(path).write_bytes(b"half")
            text = f"I/O error: {os.strerror(errno.ENOSPC)} (os error {error.errno})"
            raise SafetensorError(f"Error while serializing: {text}") from None
        return serialize(tensors, path, *arguments, **options)

    def asking(function):
        def asked(*arguments, **options):
            disk.ask()
            return function(*arguments, **options)

        return asked

    with (
        mock.patch.object(io, "open", opened),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(safetensors.torch, "serialize_file", serialized),
        mock.patch.object(os, "mkdir", asking(os.mkdir)),
        mock.patch.object(os, "replace", asking(os.replace)),
        mock.patch.object(os, "fsync", asking(os.fsync)),
    ):
        yield disk
