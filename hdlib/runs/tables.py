"""Tables that were measured of runs, kept in `probes/` below a record store, one file each, with what made it."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hdlib.runs.files import write_whole
from hdlib.runs.record import provenance
from hdlib.runs.store import Store, parquet
from hdlib.tasks import load_data


def measured(
    what: str, asked: list, task: str, folder: str | Path, measure: Callable[[], pd.DataFrame], device: str = "cpu"
) -> pd.DataFrame:
    """Return a table, measured where it is not kept; one without rows is not kept.

    Its `attrs["made"]` says what made it: device, threads, seconds, data, date and more, as a record's provenance.

    Args:
        what: a word for it, the start of the file's name.
        asked: all that decides what is in it, as plain JSON values.
        task: whose data it is measured on.
        folder: of the record store.
        measure: makes the table.
        device: on which it does so.

    Raises:
        SpecError: it would have to be measured and cannot be kept, found out before.
    """
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    store = Store(folder)
    path = store.folder / "probes" / f"{what}-{digest}.parquet"
    try:
        return _table(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError:
        warnings.warn(f"{path} may not be read by you: make it readable, or it is measured again.", stacklevel=3)
    except Exception as error:  # whatever the reader of a damaged file raises
        warnings.warn(f"{path} is damaged ({type(error).__name__}): it is measured again.", stacklevel=3)
    Store(path.parent).require_writable()
    started = time.perf_counter()
    table = measure()
    if table.empty:
        return table
    made = provenance(
        device, torch.get_num_threads(), time.perf_counter() - started, load_data(task, "cpu", torch.float64).source
    )
    kept = pa.Table.from_pandas(table, preserve_index=False)
    kept = kept.replace_schema_metadata(kept.schema.metadata | {b"made": json.dumps(made)})
    content = parquet(kept, checksums=True)
    try:
        write_whole(path, content)
    except OSError as error:
        warnings.warn(
            f"{path} could not be written ({error.strerror or error}): what was measured is shown, and will be "
            "measured again when it is asked for again.",
            stacklevel=3,
        )
    return _table(content)


def _table(content: bytes) -> pd.DataFrame:
    table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    if b"made" not in (table.schema.metadata or {}):
        raise ValueError("it does not say what made it")
    frame = table.to_pandas()
    frame.attrs["made"] = json.loads(table.schema.metadata[b"made"])
    return frame
