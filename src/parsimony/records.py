"""Records: one measured number for one item, long, tidy and typed; everything else is derived from them.

A file of records is a Parquet file whose metadata (the footer) holds the row count, a hash of the content and the
provenance of the measurement.  Files appear by atomic rename; a reader refuses a file whose footer does not agree.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from parsimony.errors import UserError

if TYPE_CHECKING:  # half a second, which cells that compare with no other do not need
    import pandas as pd

STATUSES = ("ok", "skipped", "failed")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("suite", "cell", "model", "benchmark", "method", "point", "params")]
    + [("item", pa.string()), ("category", pa.string()), ("seed", pa.int64()), ("metric", pa.string())]
    + [("value", pa.float64()), ("unit", pa.string()), ("status", pa.string()), ("reason", pa.string())]
)
COLUMNS = SCHEMA.names


def table_of(rows: list[dict]) -> pa.Table:
    """Rows of records as a typed table; unknown columns and statuses are refused."""
    for row in rows:
        if extra := set(row) - set(COLUMNS):
            raise ValueError(f"unknown record columns {sorted(extra)}")
        if row["status"] not in STATUSES or (row["status"] != "ok") != bool(row["reason"]):
            raise ValueError(f"status {row['status']!r} with reason {row['reason']!r}: all but ok have one")
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def digest(table: pa.Table) -> str:
    """SHA-256 of the content of a table: its schema and its values, independent of compression."""
    sha = hashlib.sha256()
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    sha.update(sink.getvalue())
    return sha.hexdigest()


def publish(table: pa.Table, path: Path, provenance: dict) -> None:
    """Write ``table`` with its footer so that ``path`` appears complete or not at all.

    Raises
    ------
    UserError
        When the disk is full or the folder cannot be written; nothing half-written stays behind.
    """
    footer = {"rows": table.num_rows, "sha256": digest(table), "provenance": provenance}
    table = table.replace_schema_metadata({"parsimony": json.dumps(footer, sort_keys=True)})
    with atomic(path) as partial:
        pq.write_table(table, partial, compression="zstd")


@contextlib.contextmanager
def atomic(path: Path):
    """Yield a temporary path beside ``path`` that is flushed and renamed to it when the block succeeds.

    Raises
    ------
    UserError
        When there is no space left; the temporary file is removed.
    """
    path = Path(path)
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        yield Path(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk that holds {path.parent}: free some and run again; "
                "everything finished so far is kept"
            ) from None
        raise
    finally:
        if partial and os.path.exists(partial):
            os.unlink(partial)


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Records of one file and their provenance.

    Raises
    ------
    UserError
        When the file is truncated, has no footer, or its content does not match the footer.
    """
    table, footer = read_table(path)
    return table.to_pandas(use_threads=False), footer["provenance"]


def read_table(path: Path) -> tuple[pa.Table, dict]:
    """The verified table of one file and its footer (``rows``, ``sha256``, ``provenance``)."""
    remedy = "remove the file and run again"
    try:
        with open(path, "rb") as file:
            # Arrow's thread pools may abort a process that ends right after reading ("terminate called ...").
            table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        cause = "it does not exist" if isinstance(error, FileNotFoundError) else "it is truncated or not Parquet"
        raise UserError(f"cannot read records {path}: {cause}; {remedy}") from None
    metadata = (table.schema.metadata or {}).get(b"parsimony")
    if metadata is None:
        raise UserError(f"records {path} carry no footer, so they cannot be trusted; {remedy}")
    footer = json.loads(metadata)
    if table.num_rows != footer["rows"] or digest(table) != footer["sha256"]:
        raise UserError(f"the content of {path} does not match its footer (row count and SHA-256); {remedy}")
    return table.replace_schema_metadata(None), footer


def read_all(paths) -> tuple[pd.DataFrame, dict[str, dict]]:
    """All records of several files, and the provenance of each cell by its id."""
    import pandas as pd

    frames, provenance = [], {}
    for path in paths:
        frame, facts = read(path)
        frames.append(frame)
        provenance.update({cell: facts for cell in frame["cell"].unique()})
    if not frames:
        return SCHEMA.empty_table().to_pandas(), {}
    return pd.concat(frames, ignore_index=True), provenance
