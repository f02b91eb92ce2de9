"""The record store: a folder of small parquet files, each holding one or more records whole.

A record is one row: its key, its spec and provenance as JSON, its histories as lists. Files are written
beside their place and moved into it, so a record is there whole or not at all. A file's name is the checksum of its
content: two writers never touch the same one, and a damaged file is noticed, named in a warning, and its runs count
as not recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS, Record
from hdlib.runs.spec import RunSpec

MAX_FILE_BYTES = 4_000_000
INTEGERS = ("epoch", "iteration")


class Store:
    """Records in a folder, found by their specs.

    Args:
        folder: created when the first record is put into it.
    """

    def __init__(self, folder: str | Path = "results") -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"store is {str(folder)!r}, which is a file: name a folder.")
        self._index: dict[Path, tuple[tuple[int, int], list[str]]] = {}

    def keys(self) -> set[str]:
        """Return the keys of all readable records."""
        return {key for keys in self._files().values() for key in keys}

    def get(self, specs: Iterable[RunSpec]) -> list[Record]:
        """Return the records of those specs that are recorded, in the order of the specs."""
        specs = list(specs)
        wanted = {spec.key for spec in specs}
        found: dict[str, Record] = {}
        for path, keys in self._files().items():
            if wanted & set(keys):
                found |= {record.spec.key: record for record in _read(path, wanted & set(keys))}
        return [found[spec.key] for spec in specs if spec.key in found]

    def all(self) -> list[Record]:
        """Return every readable record."""
        records = {record.spec.key: record for path, keys in self._files().items() if keys for record in _read(path)}
        return list(records.values())

    def put(self, records: Iterable[Record]) -> list[Path]:
        """Write records into new files below MAX_FILE_BYTES; return the files' paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for batch in _batches(list(records)):
            content = _parquet(batch)
            task, model = batch[0].spec.task, batch[0].spec.model
            path = self.folder / f"{task}-{model}-{_checksum(content)}.parquet"
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            paths.append(path)
        return paths

    def compact(self, paths: Iterable[Path]) -> None:
        """Merge the given files into few: the merged ones are in place before the old ones go."""
        paths = set(paths)
        groups: dict[tuple[str, str], dict[str, Record]] = {}
        for path in sorted(paths):
            for record in _read(path):
                groups.setdefault((record.spec.task, record.spec.model), {})[record.spec.key] = record
        merged = {path for group in groups.values() for path in self.put(group.values())}
        for path in paths - merged:
            path.unlink()

    def _files(self) -> dict[Path, list[str]]:
        files = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                stat = path.stat()
            except FileNotFoundError:  # merged away by its writer
                continue
            state = (stat.st_mtime_ns, stat.st_size)
            if self._index.get(path, (None,))[0] != state:
                try:
                    keys = _keys(path)
                except FileNotFoundError:
                    continue
                except Exception as error:
                    keys = []
                    warnings.warn(
                        f"{path} is damaged ({type(error).__name__}): its runs will be trained again where they "
                        "are asked for; delete the file to be rid of this warning.",
                        stacklevel=3,
                    )
                self._index[path] = (state, keys)
            files[path] = self._index[path][1]
        return files


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


def _parquet(records: list[Record]) -> bytes:
    columns: dict[str, pa.Array] = {
        "key": pa.array([r.spec.key for r in records]),
        "spec": pa.array([r.spec.canonical() for r in records]),
        "outcome": pa.array([r.outcome for r in records]),
        "iterations": pa.array([r.iterations for r in records], pa.int64()),
        "provenance": pa.array([json.dumps(r.provenance, sort_keys=True) for r in records]),
    }
    for kind, names in (("epochs", EPOCH_COLUMNS), ("trace", TRACE_COLUMNS)):
        for name in names:
            element = pa.int32() if name in INTEGERS else pa.float64() if kind == "epochs" else pa.float32()
            with np.errstate(over="ignore"):
                lists = [getattr(r, kind)[name].to_numpy().astype(element.to_pandas_dtype()) for r in records]
            columns[f"{kind}.{name}"] = pa.array(lists, pa.list_(element))
    # a float's bytes apart from one another, and no dictionary of floats that hardly recur, make half the size
    floats = [f"{name}.list.element" for name, column in columns.items() if pa.types.is_list(column.type)]
    floats = [path for path in floats if path.split(".")[1] not in INTEGERS]
    texts = [name for name, column in columns.items() if pa.types.is_string(column.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns),
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=texts,
        use_byte_stream_split=floats,
    )
    return sink.getvalue().to_pybytes()


def _content(path: Path) -> pa.BufferReader:
    content = path.read_bytes()
    if not path.stem.endswith(_checksum(content)):
        raise ValueError("its content is not what its name says")
    return pa.BufferReader(content)


def _keys(path: Path) -> list[str]:
    return pq.read_table(_content(path), columns=["key"]).column("key").to_pylist()


def _read(path: Path, keys: set[str] | None = None) -> list[Record]:
    filters = None if keys is None else [("key", "in", sorted(keys))]
    table = pq.read_table(_content(path), filters=filters)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    epochs, traces = _frames(columns, "epochs", EPOCH_COLUMNS), _frames(columns, "trace", TRACE_COLUMNS)
    records = []
    for i, (key, text) in enumerate(zip(columns["key"].to_pylist(), columns["spec"].to_pylist(), strict=True)):
        spec = RunSpec(**json.loads(text))
        if spec.key != key:
            raise ValueError("a record's key does not belong to its spec")
        records.append(
            Record(
                spec=spec,
                outcome=columns["outcome"][i].as_py(),
                iterations=columns["iterations"][i].as_py(),
                provenance=json.loads(columns["provenance"][i].as_py()),
                epochs=epochs[i],
                trace=traces[i],
            )
        )
    return records


def _frames(columns: dict[str, pa.ListArray], kind: str, names: Sequence[str]) -> list[pd.DataFrame]:
    """Return the histories of one kind, one a record: slices of one frame, because making frames is slow."""
    together = pd.DataFrame({name: columns[f"{kind}.{name}"].flatten().to_numpy() for name in names})
    ends = np.cumsum(columns[f"{kind}.{names[0]}"].value_lengths())
    frames = []
    for start, end in zip([0, *ends], ends, strict=False):
        frame = together.iloc[start:end]
        frame.index = pd.RangeIndex(len(frame))
        frames.append(frame)
    return frames
