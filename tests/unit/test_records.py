"""Records and journals: whole or not there at all."""

import os
import subprocess

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsimony import records
from parsimony.cell import OUTPUTS
from parsimony.errors import UserError
from parsimony.journal import Journal


def row(**changes):
    base = dict.fromkeys(records.COLUMNS, "x") | {"seed": 0, "value": 1.5, "status": "ok", "reason": ""}
    return base | changes


def test_round_trip_and_footer(tmp_path):
    path = tmp_path / "r.parquet"
    records.publish(
        records.table_of([row(), row(value=float("nan"), status="skipped", reason="no data")]), path, {"a": 1}
    )
    frame, provenance = records.read(path)
    assert provenance == {"a": 1} and len(frame) == 2 and list(tmp_path.iterdir()) == [path]
    outputs = pa.Table.from_pylist([{"item": "i", "point": "p", "name": "n", "values": [1.0, 2.0]}], schema=OUTPUTS)
    records.publish(outputs, path, {})
    assert records.read_table(path)[0].to_pylist() == outputs.to_pylist()


def test_same_content_same_bytes(tmp_path):
    for name in "ab":
        records.publish(records.table_of([row()]), tmp_path / name, {"k": [1, 2]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "r.parquet"
    records.publish(records.table_of([row()]), path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="truncated or not Parquet.*run again"):
        records.read(path)


def test_changed_content_and_missing_footer_are_refused(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    records.publish(records.table_of([row()]), path, {})
    table = pq.read_table(path)
    other = records.table_of([row(value=2.0)]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(other, path)
    with pytest.raises(UserError, match="does not match its footer"):
        records.read(path)
    pq.write_table(other.replace_schema_metadata(None), path)
    with pytest.raises(UserError, match="no footer"):
        records.read(path)


def test_rows_are_checked():
    with pytest.raises(ValueError, match="status"):
        records.table_of([row(status="skipped")])
    with pytest.raises(ValueError, match="unknown record columns"):
        records.table_of([row(extra=1)])


def test_journal_goes_on_behind_the_last_whole_shard(tmp_path):
    items = ["a", "b", "c", "d"]
    journal = Journal(tmp_path, "v1", items, 0)
    for n in range(3):
        journal.write(n, {"n": n}, {"A": torch.tensor([n])})
    assert [shard["n"] for shard in journal.done()] == [0, 1, 2]
    assert journal.state(2)["A"].item() == 2 and journal.state(1)["A"].item() == 1 and journal.state(0) is None
    shard = journal._shard(2)
    shard.write_text(shard.read_text()[:-2])
    assert [s["n"] for s in journal.done()] == [0, 1]
    assert Journal(tmp_path, "v2", items, 0).done() == []
    assert Journal(tmp_path, "v1", items, 1).done() == []


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a tiny tmpfs needs root and the right to mount")
    try:
        path = small / "r.parquet"
        records.publish(records.table_of([row()]), path, {})
        before = path.read_bytes()
        many = [row(item=os.urandom(64).hex()) for _ in range(4000)]
        with pytest.raises(UserError, match="no space left on the disk"):
            records.publish(records.table_of(many), path, {})
        assert path.read_bytes() == before and list(small.iterdir()) == [path]
    finally:
        subprocess.run(["umount", small], check=True)
