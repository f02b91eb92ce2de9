"""The record store: a folder of small parquet files, each holding one or more records whole.

A record is one row: its key, its spec and provenance as JSON, its histories as lists. Files are written beside their
place and moved into it, so a record is there whole or not at all. A file's name is the task and the model of its runs
and the checksum of its content: two writers never touch the same one, and a damaged file is noticed, named in a
warning, and its runs count as not recorded. Another process may merge files away at any time: readers list again until
they have met them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hdlib.runs.files import write_whole
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS, Record
from hdlib.runs.spec import RunSpec, SpecError

MAX_FILE_BYTES = 4_000_000
ROOM_BYTES = 100_000  # that there must be for records before any are trained
INTEGERS = ("epoch", "iteration")
HISTORIES = {"epochs": EPOCH_COLUMNS, "trace": TRACE_COLUMNS}
COLUMNS = {"key", "spec", "outcome", "iterations", "provenance"} | {
    f"{kind}.{name}" for kind, names in HISTORIES.items() for name in names
}


class Store:
    """Records in a folder, found by their specs.

    Args:
        folder: created when the first record is put into it; ~ is the home folder.

    Raises:
        SpecError: it cannot be a folder.
    """

    def __init__(self, folder: str | Path = "results") -> None:
        self.folder = Path(folder).expanduser()
        if not str(folder) or not self.folder.resolve().name:
            raise SpecError(f"store is {str(folder)!r}: name a folder.")
        if os.path.exists(self.folder) and not self.folder.is_dir():
            raise SpecError(f"store is {str(folder)!r}, which is a file: name a folder.")
        self._index: dict[Path, tuple[tuple[int, int], list[str]]] = {}

    def require_writable(self) -> None:
        """Create the folder and try to write into it.

        Raises:
            SpecError: it cannot be written into.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(ROOM_BYTES))
        except OSError as error:
            raise self._unwritable(error) from error

    def keys(self) -> set[str]:
        """Return the keys of all readable records."""
        return {key for keys in self._files().values() for key in keys}

    def get(self, specs: Iterable[RunSpec]) -> list[Record]:
        """Return the records of those specs that are recorded, in the order of the specs."""
        specs = list(specs)
        found = self._records({spec.key for spec in specs})
        return [found[spec.key] for spec in specs if spec.key in found]

    def all(self, model: str | None = None) -> list[Record]:
        """Return every readable record, or those of one model, for which no other file is read.

        Raises:
            SpecError: there is no such model.
        """
        models = get_args(RunSpec.model_fields["model"].annotation)
        if model is not None and model not in models:
            raise SpecError(f"model is {model!r}: it must be one of {', '.join(map(repr, models))}.")
        return list(self._records(model=model).values())

    def put(self, records: Iterable[Record]) -> list[Path]:
        """Write records into new files below MAX_FILE_BYTES; return the files' paths.

        Raises:
            SpecError: they cannot be written.
        """
        paths = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for batch in _batches(list(records)):
                paths.append(self._write(f"{batch[0].spec.task}-{batch[0].spec.model}", _table(batch)))
        except OSError as error:
            raise self._unwritable(error) from error
        return paths

    def forget(self, keys: Iterable[str]) -> None:
        """Remove records, while no other process writes: a file's other ones are in a new file before it goes.

        Raises:
            SpecError: the folder cannot be written into.
        """
        unwanted = set(keys)
        try:
            for path, held in self._files().items():
                if unwanted.isdisjoint(held):
                    continue
                if not unwanted.issuperset(held):
                    filters = [("key", "not in", sorted(unwanted))]
                    self._write(path.stem.rpartition("-")[0], pq.read_table(_content(path), filters=filters))
                path.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, name: str, table: pa.Table) -> Path:
        content = parquet(table)
        path = self.folder / f"{name}-{_checksum(content)}.parquet"
        write_whole(path, content)
        return path

    def compact(self, paths: Iterable[Path]) -> None:
        """Merge files that this process wrote into few: the merged ones are in place before the old ones go.

        Where that fails, a warning says so: the records are in the files that there are.
        """
        paths = set(paths)
        groups: dict[tuple[str, str], dict[str, Record]] = {}
        try:
            for path in sorted(paths):
                for record in _read(path):
                    groups.setdefault((record.spec.task, record.spec.model), {})[record.spec.key] = record
            merged = {path for group in groups.values() for path in self.put(group.values())}
            for path in paths - merged:
                path.unlink()
        except (OSError, ValueError) as error:
            warnings.warn(f"The records are safe, but their files could not be merged: {error}", stacklevel=2)

    def _records(self, wanted: set[str] | None = None, model: str | None = None) -> dict[str, Record]:
        """Return the readable records, those with the wanted keys or of a model alone where these are given.

        Of two with one key it is the later one.
        """
        records: dict[str, Record] = {}
        seen: set[Path] = set()
        while new := {path: keys for path, keys in self._files(model).items() if path not in seen}:
            seen |= set(new)
            for path, held in new.items():
                keys = set(held) if wanted is None else wanted & set(held)
                try:
                    found = _read(path, None if wanted is None else keys) if keys else []
                except FileNotFoundError:  # merged away
                    continue
                for record in found:
                    known = records.get(record.spec.key)
                    if known is None or known.provenance.get("date", "") <= record.provenance.get("date", ""):
                        records[record.spec.key] = record
        return records

    def _files(self, model: str | None = None) -> dict[Path, list[str]]:
        """Return the readable files, all or those of a model, with the keys of their records."""
        files: dict[Path, list[str]] = {}
        seen: set[Path] = set()
        while new := set(self.folder.glob(f"*-{model}-*.parquet" if model else "*.parquet")) - seen:
            seen |= new
            for path in sorted(new):
                try:
                    files[path] = self._keys_in(path)
                except FileNotFoundError:  # merged away
                    continue
        return files

    def _keys_in(self, path: Path) -> list[str]:
        stat = path.stat()
        state = (stat.st_mtime_ns, stat.st_size)
        if self._index.get(path, (None,))[0] != state:
            keys = []
            try:
                keys = _keys(path)
            except FileNotFoundError:
                raise
            except PermissionError:
                warnings.warn(
                    f"{path} may not be read by you: make it readable, or its runs are trained again.", stacklevel=5
                )
            except Exception as error:
                reason = str(error) if type(error) is ValueError else f"damaged: {type(error).__name__}"
                warnings.warn(
                    f"{path} cannot be used ({reason}): its runs will be trained again where they are asked for; "
                    "delete the file to be rid of this warning.",
                    stacklevel=5,
                )
            self._index[path] = (state, keys)
        return self._index[path][1]

    def _unwritable(self, error: OSError) -> SpecError:
        return SpecError(
            f"store is {str(self.folder)!r}, where nothing can be written ({error.strerror or error}): "
            "name another folder, or make it writable and give it room."
        )


def _batches(records: list[Record]) -> list[list[Record]]:
    """Split records of one task and model so that no file grows beyond MAX_FILE_BYTES (uncompressed, so below)."""
    batches: list[list[Record]] = []
    room = 0
    for record in sorted(records, key=lambda r: (r.spec.task, r.spec.model, r.spec.canonical())):
        size = 4_000 + 48 * len(record.epochs) + 16 * len(record.trace)
        same = batches and (batches[-1][0].spec.task, batches[-1][0].spec.model) == (
            record.spec.task,
            record.spec.model,
        )
        if not same or size > room:
            batches.append([])
            room = MAX_FILE_BYTES
        batches[-1].append(record)
        room -= size
    return batches


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _table(records: list[Record]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "key": pa.array([r.spec.key for r in records]),
        "spec": pa.array([r.spec.canonical() for r in records]),
        "outcome": pa.array([r.outcome for r in records]),
        "iterations": pa.array([r.iterations for r in records], pa.int64()),
        "provenance": pa.array([json.dumps(r.provenance, sort_keys=True) for r in records]),
    }
    for kind, names in HISTORIES.items():
        for name in names:
            element = pa.int32() if name in INTEGERS else pa.float64() if kind == "epochs" else pa.float32()
            with np.errstate(over="ignore"):
                lists = [getattr(r, kind)[name].to_numpy().astype(element.to_pandas_dtype()) for r in records]
            columns[f"{kind}.{name}"] = pa.array(lists, pa.list_(element))
    return pa.table(columns)


def parquet(table: pa.Table, checksums: bool = False) -> bytes:
    """Return a table as the bytes of a small parquet file, its pages with checksums or not."""
    # a float's bytes apart from one another, and no dictionary of floats that hardly recur, make half the size
    floats = [
        f"{name}.list.element" if pa.types.is_list(kind) else name
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
        if pa.types.is_floating(kind.value_type if pa.types.is_list(kind) else kind)
    ]
    texts = [column.name for column in table.schema if pa.types.is_string(column.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=19,
        use_dictionary=texts,
        use_byte_stream_split=floats,
        write_page_checksum=checksums,
    )
    return sink.getvalue().to_pybytes()


def _content(path: Path) -> pa.BufferReader:
    content = path.read_bytes()
    if not path.stem.endswith(_checksum(content)):
        raise ValueError("its content is not what its name says: damaged, or renamed")
    return pa.BufferReader(content)


def _keys(path: Path) -> list[str]:
    file = pq.ParquetFile(_content(path))
    missing = COLUMNS - set(file.schema_arrow.names)
    if missing:
        raise ValueError(f"it lacks {min(missing)}")
    return file.read(columns=["key"]).column("key").to_pylist()


def _read(path: Path, keys: set[str] | None = None) -> list[Record]:
    """Return a file's records, all or some; those that this version does not know are named in a warning, left out."""
    filters = None if keys is None else [("key", "in", sorted(keys))]
    table = pq.read_table(_content(path), filters=filters)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    epochs, traces = _Frames(columns, "epochs", EPOCH_COLUMNS), _Frames(columns, "trace", TRACE_COLUMNS)
    outcomes, iterations, provenances = (columns[n].to_pylist() for n in ("outcome", "iterations", "provenance"))
    records, unknown = [], []
    for i, (key, text) in enumerate(zip(columns["key"].to_pylist(), columns["spec"].to_pylist(), strict=True)):
        try:
            spec = _spec(text, key)
            if spec.key != key:
                raise SpecError(f"the run's key is {spec.key} and not {key}.")
        except SpecError as error:
            unknown.append(error)
            continue
        records.append(
            Record.read(
                {
                    "epochs": partial(epochs, i),
                    "trace": partial(traces, i),
                    "provenance": partial(json.loads, provenances[i]),
                },
                spec=spec,
                outcome=outcomes[i],
                iterations=iterations[i],
            )
        )
    if unknown:
        warnings.warn(
            f"{path} holds {len(unknown)} records of another version of hdlib, which are left out: {unknown[0]}",
            stacklevel=4,
        )
    return records


@cache
def _spec(text: str, key: str) -> RunSpec:
    """Return the spec that a record has, which is validated once a process however often its store is read."""
    return RunSpec.read(text, key)


class _Frames:
    """The histories of one kind in a file, one a record: slices of one frame."""

    def __init__(self, columns: dict[str, pa.ListArray], kind: str, names: Sequence[str]) -> None:
        self.together = pd.DataFrame({name: columns[f"{kind}.{name}"].flatten().to_numpy() for name in names})
        self.ends = np.cumsum([0, *columns[f"{kind}.{names[0]}"].value_lengths().to_numpy()])

    def __call__(self, i: int) -> pd.DataFrame:
        frame = self.together.iloc[self.ends[i] : self.ends[i + 1]]
        frame.index = pd.RangeIndex(len(frame))
        return frame
