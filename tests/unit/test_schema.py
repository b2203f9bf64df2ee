"""Stores of older versions: brought up to this one, or read as they are; their numbers stay what they were."""

from __future__ import annotations

import sqlite3
import struct
from bisect import bisect_left
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from paste_agent.aggregate import BOUNDS, Total
from paste_agent.store import schema
from paste_agent.store.store import Store, pack_buckets, unpack_buckets

MS = 1_000_000
#: As versions 1 and 2 had them: the bound at 1 ms came with the buckets of databases.
OLD_BOUNDS = tuple(bound for bound in BOUNDS if bound != MS)
METRIC = "http.server.request.duration"


def folded(durations: list[int], bounds: tuple[int, ...]) -> Total:
    total = Total()
    for duration_ns in durations:
        total.observe(duration_ns)
    total.buckets = {}
    for duration_ns in durations:
        bucket = bisect_left(bounds, duration_ns)
        total.buckets[bucket] = total.buckets.get(bucket, 0) + 1
    return total


def as_before(buckets: dict[int, int]) -> bytes:
    """As an older agent writes them, by index into its own bounds."""
    return b"".join(struct.pack("<HQ", bucket, count) for bucket, count in sorted(buckets.items()))


def made(path: Path, version: int, routes: dict[str, list[int]]) -> str:
    """A store as an agent of that version left it. routes: durations in ns."""
    with closing(sqlite3.connect(path)) as db:
        for step in range(version):
            make = schema._STEPS[step]
            db.executescript(make)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {version}")
        for number, (route, durations) in enumerate(routes.items(), 1):
            db.execute("INSERT INTO series VALUES (?, ?, ?)", (number, METRIC, f'{{"http.route": "{route}"}}'))
            for table, key, some in (
                ("totals", (number,), durations),
                ("rollups", (1000, 10, number), durations[::2]),
                ("rollups", (1010, 60, number), durations[1::2]),
            ):
                one = folded(some, OLD_BOUNDS)
                row = (*key, one.count, one.sum_ns, one.max_ns, one.count, 0, 0, as_before(one.buckets))
                db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        db.commit()
    path.chmod(0o600)
    return str(path)


def durations_of(seed: int) -> list[int]:
    """From 4 µs to half an hour, without those of which only the new bound tells on which side of it they are."""
    draw = Random(seed)
    found = [round(2 ** draw.uniform(12, 41)) for _ in range(400)]
    low, high = BOUNDS[BOUNDS.index(MS) - 1], BOUNDS[BOUNDS.index(MS) + 1]
    return [one for one in found if not low < one <= high] + [high] * 3


def version_of(path: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return schema.version_of(db)


def test_every_bucket_keeps_its_upper_bound() -> None:
    assert len(OLD_BOUNDS) == len(BOUNDS) - 1
    for old in range(len(OLD_BOUNDS) + 1):
        ((new, count),) = unpack_buckets(as_before({old: 7})).items()
        assert count == 7
        if old == len(OLD_BOUNDS):
            assert new == len(BOUNDS)  # above all of them
        else:
            assert BOUNDS[new] == OLD_BOUNDS[old]


@pytest.mark.parametrize("bucket", range(len(BOUNDS) + 1))
def test_what_is_stored_comes_back_and_an_older_agent_mistakes_none(bucket: int) -> None:
    data = pack_buckets({bucket: 7})
    assert unpack_buckets(data) == {bucket: 7}
    if bucket == len(BOUNDS) or BOUNDS[bucket] != MS:
        ((number, _),) = struct.iter_unpack("<HQ", data)
        assert number == bisect_left(OLD_BOUNDS, BOUNDS[bucket] if bucket < len(BOUNDS) else BOUNDS[-1] + 1)


def test_what_is_damaged_is_read_as_far_as_it_goes() -> None:
    assert unpack_buckets(b"") == {}
    assert unpack_buckets(pack_buckets({3: 1, 60: 2})[:-1]) == {3: 1}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("read_only", [True, False])
def test_an_older_store_says_what_it_said(tmp_path: Path, version: int, read_only: bool) -> None:
    routes = {f"/{seed}": durations_of(seed) for seed in range(5)}
    path = made(tmp_path / "old.sqlite", version, routes)
    before = Path(path).read_bytes()
    with closing(Store(path, read_only=read_only)) as store:
        expected = {route: folded(durations, BOUNDS) for route, durations in routes.items()}
        for found in (store.totals(), store.totals_between(0, 1e12)):
            totals = {str(one.attributes["http.route"]): one.total for one in found}
            assert {route: total.buckets for route, total in totals.items()} == {
                route: total.buckets for route, total in expected.items()
            }
            for route, total in totals.items():
                assert (total.count, total.sum_ns) == (expected[route].count, expected[route].sum_ns)
                for share in (0.1, 0.5, 0.95, 0.99, 1.0):
                    assert total.quantile_ns(share) == expected[route].quantile_ns(share)
                assert total.export_counts() == expected[route].export_counts()
    if read_only:
        assert Path(path).read_bytes() == before
    assert version_of(path) == (version if read_only else schema.VERSION)


def test_to_read_first_and_to_bring_it_up_later_makes_no_difference(tmp_path: Path) -> None:
    path = made(tmp_path / "old.sqlite", 2, {"/": durations_of(9)})
    seen = []
    for read_only in (True, False, False, True):
        with closing(Store(path, read_only=read_only)) as store:
            seen.append([(one.attributes, one.total) for one in store.totals()])
    assert seen == seen[:1] * 4
    assert version_of(path) == schema.VERSION
