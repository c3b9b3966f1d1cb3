"""The file of a history: what is added is read back to the bit, or is not there."""

from __future__ import annotations

import datetime
import json
import math
import multiprocessing
import os
import re
import signal
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.errors import PplguardError
from pytest_pplguard.history import (
    HistoryRun,
    Origin,
    Point,
    WeightsPoint,
    add_run,
    database,
    read_runs,
)
from pytest_pplguard.values import (
    Details,
    LossDetail,
    Outcome,
    Results,
    Verdict,
    WeightsDetail,
)

KEY = "wanda/tiny:16"
NOON = datetime.datetime(2026, 11, 26, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
ORIGIN = Origin(commit="c" * 40, branch="main", dirty=True, job="https://ci/1")
VERDICT = Verdict(
    checkpoint="m/w50",
    key=KEY,
    metric="token_perplexity",
    outcome=Outcome.REGRESSED,
    passed=False,
    baseline=5.1,
    measured=0.1 + 0.2,
    change=-0.94,
    allowed=(None, 5.2),
    windows=83,
    seconds=1.5,
    cached="2026-11-26T10:00Z",
    early="within after 3 of 83 windows",
    path="models/w50",
)
POINT = Point(
    checkpoint="m/w50",
    key=KEY,
    metric="token_perplexity",
    outcome="regressed",
    passed=False,
    baseline=5.1,
    measured=0.30000000000000004,
    change=-0.94,
    allowed_low=None,
    allowed_high=5.2,
    windows=83,
    windows_digest="sha256:1",
    seconds=1.5,
    cached="2026-11-26T10:00Z",
    early="within after 3 of 83 windows",
    path="models/w50",
)
DETAILS = Details(
    losses=(
        LossDetail(
            checkpoint="m/w50",
            key=KEY,
            of="nll_sum",
            total=83,
            windows=(0,),
            scored=(15,),
            measured=(1.0,),
            windows_digest="sha256:1",
            environment={"torch": "2.13", "batch_size": 1, "compile": False, "x": None},
        ),
    ),
    weights=(
        WeightsDetail(
            checkpoint="m/w50",
            spec="models/w50",
            digest="sha256:2",
            zeros={"a": (3, 8), "b": (1, 8)},
        ),
    ),
)


def add(file: Path, **changes: Any) -> None:
    verdict = replace(VERDICT, **changes)
    add_run(f"sqlite:///{file}", Results((verdict,)), DETAILS, ORIGIN, now=NOON)


def test_a_run_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    add(path)
    (run,) = read_runs(path)
    assert run == HistoryRun(
        id=run.id,
        time="2026-11-26T12:00:00.250Z",
        commit="c" * 40,
        branch="main",
        dirty=True,
        job="https://ci/1",
        version=run.version,
        complete=True,
        passed=False,
        points=(POINT,),
        weights=(
            WeightsPoint(
                checkpoint="m/w50",
                spec="models/w50",
                digest="sha256:2",
                sparsity=0.25,
            ),
        ),
        environment={"m/w50": {KEY: DETAILS.losses[0].environment}},
    )
    assert len(run.id) == 32
    assert run.version != ""
    assert list(tmp_path.iterdir()) == [path]


def test_runs_stand_in_the_order_of_their_times(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    berlin = datetime.timezone(datetime.timedelta(hours=1))
    for time in (
        NOON,
        NOON - datetime.timedelta(hours=2),
        NOON.astimezone(berlin) - datetime.timedelta(hours=1),
    ):
        add_run(f"sqlite:///{path}", Results((VERDICT,)), Details(), Origin(), now=time)
    assert [run.time[11:16] for run in read_runs(path)] == ["10:00", "11:00", "12:00"]
    assert len({run.id for run in read_runs(path)}) == 3


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history") / "h.db"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_their_bits(one_file: Path, value: float) -> None:
    one_file.unlink(missing_ok=True)
    add(one_file, measured=value)
    (point,) = read_runs(one_file)[0].points
    assert point.measured is not None
    # SQLite has one zero.
    expected = struct.pack("d", value + 0.0)
    assert struct.pack("d", point.measured + 0.0) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_none(tmp_path: Path, value: float | None) -> None:
    path = tmp_path / "h.db"
    add(path, measured=value, change=value, allowed=(value, value))
    (point,) = read_runs(path)[0].points
    assert (point.measured, point.change, point.allowed_low) == (None, None, None)
    connection = sqlite3.connect(path)
    row = connection.execute("SELECT typeof(measured) FROM measurements").fetchone()
    connection.close()
    assert row == ("null",)


def test_any_text_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    hostile = "'; DROP TABLE runs; -- <script>\x1b[31m\n\x00é"
    add(path, checkpoint=hostile, path="\udcff" + "x" * 5000)
    (point,) = read_runs(path)[0].points
    assert point.checkpoint == hostile
    assert point.path == "\\udcff" + "x" * 5000


def test_any_name_of_a_file(tmp_path: Path) -> None:
    for name in ("a?b#c %41.db", os.fsdecode(b"\xff.db"), "é'.db"):
        add(tmp_path / name)
        assert len(read_runs(tmp_path / name)) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_without_runs(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.touch()
    assert read_runs(path) == ()


def test_a_file_that_went_bad_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.write_text("long enough for a header of SQLite, and none at all " * 20)
    for deed in (lambda: read_runs(path), lambda: add(path)):
        with pytest.raises(PplguardError) as caught:
            deed()
        assert str(caught.value) == (
            f"{path} is not a history: it is no database of SQLite; name another file"
        )


def test_a_folder_that_went_away_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "h.db"
    with pytest.raises(PplguardError) as caught:
        add(path)
    assert str(caught.value) == (
        f"{path} cannot be written: unable to open database file"
    )


def test_a_history_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "h.db"
    add(path)
    monkeypatch.setattr(database, "_PATIENCE", 0.1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(PplguardError) as caught:
        add(path)
    holder.execute("ROLLBACK")
    holder.close()
    assert str(caught.value) == (
        f"{path} cannot be written: another process has held it for 0.1 s; try again, "
        "or look for a program that has it open"
    )
    assert len(read_runs(path)) == 1


# ------------------------------------------------------------------------ many writers

WRITERS, EACH, POINTS = 8, 5, 6


def _write(path: Path, writer: int) -> None:
    for number in range(EACH):
        verdicts = tuple(
            replace(VERDICT, metric=f"{writer}.{number}.{i}") for i in range(POINTS)
        )
        add_run(f"sqlite:///{path}", Results(verdicts), DETAILS, ORIGIN)


def _die(path: Path, statement: str) -> None:
    """Add a run, and be killed at a statement of it."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith(statement):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(sql, *values)

        def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith(statement):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().executemany(sql, *values)

    connect = sqlite3.connect

    def connecting(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options, factory=Connection)
        connection.execute("PRAGMA cache_size = 1")  # what is written goes to the file
        return connection

    pytest.MonkeyPatch().setattr(sqlite3, "connect", connecting)
    verdicts = tuple(replace(VERDICT, metric=f"dead {i}" * 50) for i in range(999))
    add_run(f"sqlite:///{path}", Results(verdicts), DETAILS, ORIGIN)


def test_writers_lose_nothing_and_one_that_is_killed_leaves_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.db"
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write, args=(path, writer)) for writer in range(WRITERS)
    ]
    deaths = ["INSERT OR REPLACE INTO weights", "COMMIT", "INSERT INTO measurements"]
    doomed = [context.Process(target=_die, args=(path, at)) for at in deaths]
    processes = [*writers[:4], *doomed, *writers[4:]]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in writers] == [0] * WRITERS
    assert [process.exitcode for process in doomed] == [-signal.SIGKILL] * 3

    runs = read_runs(path)
    assert len({run.id for run in runs}) == len(runs) == WRITERS * EACH
    found = [tuple(point.metric for point in run.points) for run in runs]
    assert sorted(found) == sorted(
        tuple(f"{writer}.{number}.{i}" for i in range(POINTS))
        for writer in range(WRITERS)
        for number in range(EACH)
    )
    assert all(len(run.weights) == 1 and run.environment for run in runs)
    connection = sqlite3.connect(path)
    for table in ("measurements", "weights", "environment"):
        orphans = connection.execute(
            f"SELECT count(*) FROM {table} WHERE run NOT IN (SELECT id FROM runs)"
        ).fetchone()
        assert orphans == (0,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert json.dumps([str(p.name) for p in tmp_path.iterdir()]) == '["h.db"]'


def test_the_first_writer_that_is_killed_leaves_no_half_made_tables(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.db"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_die, args=(path, "CREATE INDEX"))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    add(path)
    assert [run.points for run in read_runs(path)] == [(POINT,)]


def test_the_docs_name_every_table_and_column(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    add(path)
    page = Path(__file__).parents[2] / "docs" / "history.md"
    rows = re.findall(
        r"^\| `(\w+)` \| (`id`.*|`run`.*) \|$", page.read_text("utf-8"), re.M
    )
    shown = {table: re.findall(r"`(\w+)`", columns) for table, columns in rows}
    connection = sqlite3.connect(path)
    names = "SELECT name FROM sqlite_master WHERE type = 'table'"
    there = {
        table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        for (table,) in connection.execute(names).fetchall()
    }
    connection.close()
    assert shown == there
