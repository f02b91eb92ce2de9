"""Checkpoints: a run that was stopped goes on from its last one, as if it had never stopped.

A checkpoint is one file a run, `<key>.pt`, written beside its place and moved into it, with the checksum of its
content in front: it is there whole or not at all. It holds the model, the optimiser (alpha, moments, the previous
direction), the history so far and the epoch. Random generators are seeded anew at each epoch's start, from the run's
seed and the epoch, so that they need no state.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hdlib.runs.files import write_whole
from hdlib.runs.record import code_version
from hdlib.runs.spec import RunSpec

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of runs in a folder, one a run.

    Attributes:
        folder: created with the first checkpoint.
        seconds: write one at the first epoch's end after so many seconds.
        epochs: write one every so many epochs too; None for no such rule.
    """

    folder: Path
    seconds: float = 30.0
    epochs: int | None = None

    @classmethod
    def beside(cls, store: Path, **when: Any) -> Checkpoints:
        """Return those of a record store: the folder `<store>.checkpoints` beside it."""
        store = store.resolve()
        return cls(store.with_name(f"{store.name}.checkpoints"), **when)

    def due(self, epoch: int, seconds: float) -> bool:
        """Say whether to write one after an epoch, `seconds` after the last one or the start."""
        return seconds >= self.seconds or (self.epochs is not None and epoch % self.epochs == 0)

    def save(self, spec: RunSpec, state: dict[str, Any]) -> None:
        """Replace the run's checkpoint, whole or not at all; where that fails, say so in a warning."""
        buffer = io.BytesIO()
        torch.save({"spec": spec.canonical(), "code": code_version(), "state": state}, buffer)
        content = buffer.getbuffer()
        path = self._path(spec)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, hashlib.sha256(content).digest(), content)
        except OSError as error:
            warnings.warn(
                f"{path} could not be written ({error.strerror or error}): the run goes on, but if it is stopped, it "
                "starts anew.",
                stacklevel=2,
            )

    def load(self, spec: RunSpec, device: str = "cpu") -> dict[str, Any] | None:
        """Return the run's saved state with its tensors on a device, or None where there is none to go on from.

        A damaged checkpoint, or one that other code wrote, is named in a warning and not used.
        """
        path = self._path(spec)
        try:
            file = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            warnings.warn(f"{path} cannot be read ({error.strerror}): its run starts anew.", stacklevel=2)
            return None
        content = memoryview(file)[DIGEST_BYTES:]
        try:
            if hashlib.sha256(content).digest() != file[:DIGEST_BYTES]:
                raise ValueError("its content is not what its checksum says")
            saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            written_by = saved["spec"], saved["code"]
        except torch.OutOfMemoryError:  # on the device
            raise
        except Exception:  # whatever a file of other content makes the reader raise
            warnings.warn(f"{path} is damaged: its run starts anew.", stacklevel=2)
            return None
        if written_by != (spec.canonical(), code_version()):
            warnings.warn(f"{path} was written by other code: its run starts anew.", stacklevel=2)
            return None
        return saved["state"]

    def discard(self, spec: RunSpec) -> None:
        """Remove the run's checkpoint, if there is one, and the folder once it is empty."""
        for path in (self._path(spec), *self.folder.glob(f".{spec.key}.*.tmp")):  # of a writer that was killed
            with suppress(OSError):  # there is none
                path.unlink()
        with suppress(OSError):  # nor a folder, or it holds others
            self.folder.rmdir()

    def _path(self, spec: RunSpec) -> Path:
        return self.folder / f"{spec.key}.pt"
