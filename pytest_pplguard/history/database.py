"""The file of a history: SQLite, one transaction a run, safe for several writers.

A run that is added is there in full or not at all, also where its process is killed:
SQLite rolls back what was not committed. The journal is SQLite's usual one and not a
write-ahead log: when nobody writes, the history is one file, which a CI can keep.
"""

from __future__ import annotations

import datetime
import json
import math
import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import PplguardError
from ..values import Details, Results, Scalar, Verdict
from .origin import Origin
from .records import HistoryRun, Point, WeightsPoint

SCHEMA = 1
"""Version of the tables, SQLite's ``user_version``."""

APPLICATION = 0x70706C67
"""``pplg``, SQLite's ``application_id``: what tells a history from other databases."""

_PATIENCE = 60.0
"""Seconds that a writer waits for others; each takes some milliseconds."""

_TABLES = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  uid TEXT NOT NULL UNIQUE,
  time TEXT NOT NULL,
  commit_hash TEXT NOT NULL,
  branch TEXT NOT NULL,
  dirty INTEGER NOT NULL,
  job TEXT NOT NULL,
  version TEXT NOT NULL,
  complete INTEGER NOT NULL,
  passed INTEGER NOT NULL
);
CREATE TABLE measurements (
  run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  checkpoint TEXT NOT NULL,
  key TEXT NOT NULL,
  metric TEXT NOT NULL,
  outcome TEXT NOT NULL,
  passed INTEGER NOT NULL,
  baseline REAL,
  measured REAL,
  change REAL,
  allowed_low REAL,
  allowed_high REAL,
  windows INTEGER,
  windows_digest TEXT NOT NULL,
  seconds REAL,
  cached TEXT NOT NULL,
  early TEXT NOT NULL,
  path TEXT NOT NULL
);
CREATE INDEX measurements_of_a_run ON measurements (run);
CREATE TABLE weights (
  run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  checkpoint TEXT NOT NULL,
  spec TEXT NOT NULL,
  digest TEXT NOT NULL,
  sparsity REAL,
  PRIMARY KEY (run, checkpoint)
);
CREATE TABLE environment (
  run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  checkpoint TEXT NOT NULL,
  key TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (run, checkpoint, key, name)
);
"""


def add_run(
    url: str,
    results: Results,
    details: Details,
    origin: Origin,
    *,
    now: datetime.datetime | None = None,
) -> None:
    """Add a run in one transaction.

    Args:
        url: from :func:`~.url.checked_url`.
        results: of the run.
        details: what is behind its verdicts.
        origin: where it came from.
        now: the time of the run, with a time zone; None for this moment.

    Raises:
        PplguardError: the database cannot be written.
    """
    path = Path(url.removeprefix("sqlite:///"))
    time = now or datetime.datetime.now(datetime.UTC)
    with _connected(path, "rwc", "be written") as connection:
        connection.execute("BEGIN IMMEDIATE")
        _require_ours(connection, path)
        _create_tables(connection)
        cursor = connection.execute(
            "INSERT INTO runs (uid, time, commit_hash, branch, dirty, job, version, "
            "complete, passed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _texts(
                uuid.uuid4().hex,
                time.astimezone(datetime.UTC)
                .isoformat(timespec="milliseconds")
                .replace("+00:00", "Z"),
                origin.commit,
                origin.branch,
                origin.dirty,
                origin.job,
                version("pytest-pplguard"),
                results.complete,
                results.passed,
            ),
        )
        run = cursor.lastrowid
        digests = {
            (loss.checkpoint, loss.key): loss.windows_digest for loss in details.losses
        }
        connection.executemany(
            f"INSERT INTO measurements VALUES ({_marks(17)})",
            (_texts(run, *_row(verdict, digests)) for verdict in results.verdicts),
        )
        connection.executemany(
            f"INSERT OR REPLACE INTO weights VALUES ({_marks(5)})",
            (
                _texts(run, one.checkpoint, one.spec, one.digest, one.sparsity)
                for one in details.weights
            ),
        )
        connection.executemany(
            f"INSERT OR REPLACE INTO environment VALUES ({_marks(5)})",
            (
                _texts(run, loss.checkpoint, loss.key, name, json.dumps(value))
                for loss in details.losses
                for name, value in loss.environment.items()
            ),
        )
        connection.execute("COMMIT")


def _row(
    verdict: Verdict, digests: Mapping[tuple[str, str], str]
) -> Iterator[str | float | int | None]:
    low, high = verdict.allowed
    yield from (verdict.checkpoint, verdict.key, verdict.metric, str(verdict.outcome))
    yield verdict.passed
    numbers = (verdict.baseline, verdict.measured, verdict.change, low, high)
    yield from map(_finite, numbers)
    yield verdict.windows
    yield digests.get((verdict.checkpoint, verdict.key), "")
    yield _finite(verdict.seconds)
    yield from (verdict.cached, verdict.early, verdict.path)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _texts(*values: Any) -> tuple[Any, ...]:
    """Values for SQLite, which takes no lone surrogates (names of files may be any)."""
    return tuple(
        value.encode("utf-8", "backslashreplace").decode()
        if isinstance(value, str)
        else value
        for value in values
    )


def _marks(count: int) -> str:
    return ", ".join("?" * count)


# ----------------------------------------------------------------------------- reading


def read_runs(path: Path) -> tuple[HistoryRun, ...]:
    """All runs, the oldest first.

    Raises:
        PplguardError: it is no history, or cannot be read.
    """
    # Not read-only: what a killed writer has left is rolled back by the next reader.
    with _connected(path, "rw", "be read") as connection:
        connection.execute("BEGIN")
        if not _require_ours(connection, path):
            return ()
        points, weights = defaultdict(list), defaultdict(list)
        environment: dict[int, dict[str, dict[str, dict[str, Scalar]]]] = {}
        for row in connection.execute("SELECT * FROM measurements ORDER BY rowid"):
            fields = dict(row)
            run = fields.pop("run")
            points[run].append(Point(**fields | {"passed": bool(row["passed"])}))
        for row in connection.execute("SELECT * FROM weights ORDER BY rowid"):
            fields = dict(row)
            weights[fields.pop("run")].append(WeightsPoint(**fields))
        for run, checkpoint, key, name, value in connection.execute(
            "SELECT run, checkpoint, key, name, value FROM environment ORDER BY rowid"
        ):
            of_run = environment.setdefault(run, {}).setdefault(checkpoint, {})
            of_run.setdefault(key, {})[name] = json.loads(value)
        return tuple(
            HistoryRun(
                id=row["uid"],
                time=row["time"],
                commit=row["commit_hash"],
                branch=row["branch"],
                dirty=bool(row["dirty"]),
                job=row["job"],
                version=row["version"],
                complete=bool(row["complete"]),
                passed=bool(row["passed"]),
                points=tuple(points[row["id"]]),
                weights=tuple(weights[row["id"]]),
                environment=environment.get(row["id"], {}),
            )
            for row in connection.execute("SELECT * FROM runs ORDER BY time, id")
        )


def check_database(path: Path) -> None:
    """Refuse an existing file that no run could be added to.

    Raises:
        PplguardError: it is no history, is too new, or cannot be written.
    """
    with _connected(path, "rw", "be written", patience=0) as connection:
        _require_ours(connection, path)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if not _is_busy(error):  # somebody is adding a run, so that one can
                raise


@contextmanager
def _connected(
    path: Path, mode: str, what: str, *, patience: float | None = None
) -> Iterator[sqlite3.Connection]:
    """A connection; what was not committed when it closes never happened."""
    patience = _PATIENCE if patience is None else patience
    try:
        address = f"{path.as_uri()}?mode={mode}"
        with closing(
            sqlite3.connect(address, uri=True, timeout=patience, isolation_level=None)
        ) as connection:
            connection.row_factory = sqlite3.Row
            yield connection
    except sqlite3.Error as error:
        raise PplguardError(f"{path} {_why(error, what, patience)}") from error


def _why(error: sqlite3.Error, what: str, patience: float) -> str:
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return "is not a history: it is no database of SQLite; name another file"
    if _is_busy(error):
        return (
            f"cannot {what}: another process has held it for {patience:g} s; try "
            "again, or look for a program that has it open"
        )
    return f"cannot {what}: {error}"


def _is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _require_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there are tables already.

    Raises:
        PplguardError: of something else, or of a newer version.
    """
    (known,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application:
        return False
    if application != APPLICATION:
        raise PplguardError(
            f"{path} is not a history: it is a database of something else; name "
            "another file"
        )
    if known > SCHEMA:
        raise PplguardError(
            f"{path} was written by a newer pytest-pplguard (schema {known}, this "
            f"version reads {SCHEMA}): upgrade"
        )
    return True


def _create_tables(connection: sqlite3.Connection) -> None:
    (known,) = connection.execute("PRAGMA user_version").fetchone()
    if known == SCHEMA:
        return
    for statement in _statements(_TABLES):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _statements(script: str) -> Iterable[str]:
    # ``executescript`` would commit first.
    return (part.strip() for part in script.split(";") if part.strip())
