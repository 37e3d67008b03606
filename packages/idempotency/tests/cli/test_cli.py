"""The command line: its exit codes, what it prints, and what it never prints."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import until_forgotten_sync, until_lapsed_sync, with_long_deadline

from idempotency import Acquired, Claim, Fingerprint, Owner, Response, storage_key
from idempotency._core.outcome import encode_response
from idempotency._core.types import key_id
from idempotency.cli import main
from idempotency.stores.encrypted import KeyRing, SyncEncryptedStore
from idempotency.stores.sqlite import SyncSQLiteStore

OWNER = Owner(b"\xabOWNER-TOKEN-16b")
ANSWER = encode_response(Response(201, [(b"x-secret-header", b"h")], b'{"card":"4242"}'))


class Shop:
    """A store in a file with one record of each kind, and the command line over it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self.store = SyncSQLiteStore(
            path, synchronous="NORMAL"
        )  # many records are made, and no power is lost
        self.capsys = capsys
        self.claim("running", lease=3600.0)
        self.claim("abandoned", lease=0.001)
        done = self.claim("completed", lease=3600.0)
        self.store.complete(done, ANSWER, retention=3600.0)
        self.claim("hers", lease=3600.0, tenant="alice smith")
        until_lapsed_sync(self.store, storage_key("", "abandoned"))

    def claim(self, key: str, *, lease: float, tenant: str = "", retention: float = 3600.0) -> Claim:
        reply = self.store.acquire(
            storage_key(tenant, key),
            fingerprint=Fingerprint(b"f" * 32),
            owner=OWNER,
            lease=lease,
            retention=retention,
        )
        assert isinstance(reply, Acquired)
        return reply.claim

    def run(self, *argv: str, url: str | None = None) -> int:
        return main([argv[0], "--store", url or self.url, *argv[1:]])

    def rows(self, *argv: str) -> list[dict[str, Any]]:
        self.capsys.readouterr()
        assert self.run(*argv, "--json") == 0
        return [json.loads(line) for line in self.capsys.readouterr().out.splitlines()]

    def error(self) -> str:
        return self.capsys.readouterr().err


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    shop = Shop(tmp_path / "records.db", capsys)
    yield shop
    shop.store.close()


# show


def test_show_tells_of_a_running_record(shop: Shop) -> None:
    (row,) = shop.rows("show", "running")

    assert (row["key"], row["state"], row["attempt"]) == ("running", "running", 1)
    assert row["key_id"] == key_id(storage_key("", "running"))
    assert 3590 < row["lease_left_s"] <= 3600
    assert 0 < row["age_s"] < 60
    assert "outcome" not in row


def test_show_tells_of_a_completed_record_all_but_its_content(shop: Shop) -> None:
    (row,) = shop.rows("show", "completed")

    assert (row["state"], row["outcome"], row["outcome_bytes"]) == ("completed", "response 201", len(ANSWER))
    assert 0 <= row["age_s"] < 60
    assert 3500 < row["expires_in_s"] <= 3600


def test_show_shows_the_outcome_where_it_is_asked_for(shop: Shop) -> None:
    (row,) = shop.rows("show", "completed", "--show-outcome")

    assert row["outcome_text"].encode() == ANSWER


def test_a_lease_that_is_over_without_an_outcome_is_abandoned(shop: Shop) -> None:
    (row,) = shop.rows("show", "abandoned")

    assert row["state"] == "abandoned"
    assert row["lease_left_s"] <= 0


def test_an_absent_record_is_exit_code_1(shop: Shop) -> None:
    assert shop.run("show", "no-such") == 1
    assert "there is no record" in shop.error()


def test_a_key_is_found_as_it_stands_in_the_header_too(shop: Shop) -> None:
    assert shop.rows("show", '"running"')[0]["key_id"] == shop.rows("show", "running")[0]["key_id"]


def test_a_tenants_key_is_another_key(shop: Shop) -> None:
    assert shop.run("show", "hers") == 1
    (row,) = shop.rows("show", "hers", "--tenant", "alice smith")
    assert row["key"] == "alice%20smith:hers"
    assert shop.rows("show", row["key"], "--stored")[0]["key_id"] == row["key_id"]


def test_without_json_a_person_reads_a_field_a_line(shop: Shop) -> None:
    shop.run("show", "completed")

    lines = shop.capsys.readouterr().out.splitlines()
    assert "state          completed" in lines
    assert "outcome        response 201" in lines


# list


def test_list_shows_every_record_once(shop: Shop) -> None:
    keys = [row["key"] for row in shop.rows("list")]

    assert sorted(keys) == ["abandoned", "alice%20smith:hers", "completed", "running"]


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        (["--state", "running"], {"running", "alice%20smith:hers"}),
        (["--state", "abandoned"], {"abandoned"}),
        (["--state", "completed"], {"completed"}),
        (["--tenant", "alice smith"], {"alice%20smith:hers"}),
        (["--tenant", "alice"], set()),
        (["--id", key_id(storage_key("", "completed"))], {"completed"}),
    ],
)
def test_list_filters(shop: Shop, filters: list[str], keys: set[str]) -> None:
    assert {row["key"] for row in shop.rows("list", *filters)} == keys


def test_list_stops_at_its_limit_and_goes_on_past_a_page(shop: Shop) -> None:
    for number in range(600):
        shop.claim(f"more-{number}", lease=60.0)

    assert len(shop.rows("list", "--limit", "550")) == 550
    assert len(shop.rows("list", "--limit", "1000")) == 604
    assert len(shop.rows("list")) == 100


def test_without_json_list_is_a_table(shop: Shop) -> None:
    shop.run("list", "--state", "completed")

    head, row = shop.capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["key", "key_id", "state"]
    assert row.split()[0] == "completed"


# What is never shown.


def test_no_command_shows_an_owner_a_header_or_a_body_unasked(shop: Shop) -> None:
    for command in (
        ["list"],
        ["show", "running"],
        ["show", "completed"],
        ["doctor"],
        ["release", "completed"],
    ):
        for json_too in ([], ["--json"]):
            shop.run(*command, *json_too)
    shop.run("show", "running", "--show-outcome")

    shown = "".join(shop.capsys.readouterr())
    assert not any(secret in shown for secret in ("OWNER-TOKEN", OWNER.hex(), "4242", "x-secret-header"))


# release


def test_an_abandoned_run_is_released_and_its_key_runs_again(shop: Shop) -> None:
    (row,) = shop.rows("release", "abandoned")

    assert (row["was"], row["freed"]) == ("abandoned", True)
    assert shop.claim("abandoned", lease=1.0).attempt == 1


def test_a_run_under_lease_is_released_by_force_only(shop: Shop) -> None:
    assert shop.run("release", "running") == 3
    assert "of its lease left" in shop.error()
    assert shop.run("show", "running") == 0
    assert shop.run("release", "running", "--force") == 0
    assert shop.run("show", "running") == 1


def test_a_completed_record_is_forgotten_by_force_only(shop: Shop) -> None:
    assert shop.run("release", "completed") == 3
    assert "--force forgets it" in shop.error()
    assert shop.run("show", "completed") == 0
    assert shop.run("release", "completed", "--force") == 0
    assert shop.run("show", "completed") == 1


def test_releasing_an_absent_record_is_exit_code_1(shop: Shop) -> None:
    assert shop.run("release", "no-such", "--force") == 1


def test_release_leaves_a_run_that_took_over_in_between_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = SyncSQLiteStore.get

    def get_then_lose(self: SyncSQLiteStore, key: Any) -> Any:
        record = get(self, key)
        shop.store.acquire(
            key, fingerprint=Fingerprint(b"f" * 32), owner=Owner(b"n" * 16), lease=3600.0, retention=3600.0
        )
        return record

    monkeypatch.setattr(SyncSQLiteStore, "get", get_then_lose)
    assert shop.run("release", "abandoned") == 3
    assert "changed in the meantime" in shop.error()
    monkeypatch.undo()
    assert shop.rows("show", "abandoned")[0]["attempt"] == 2


def test_a_record_that_cannot_be_read_is_deleted_by_force_only(shop: Shop) -> None:
    connection = sqlite3.connect(shop.path)
    connection.execute("UPDATE idempotency_record SET fingerprint = 'text' WHERE key = 'completed'")
    connection.commit()
    connection.close()

    assert shop.run("show", "completed") == 3
    assert shop.run("release", "completed") == 3
    assert "--force deletes it" in shop.error()
    assert shop.rows("release", "completed", "--force")[0]["was"] == "unreadable"
    assert shop.run("show", "completed") == 1


# purge


def test_purge_deletes_what_has_expired_in_as_many_batches_as_it_takes(shop: Shop) -> None:
    for number in range(7):
        shop.claim(f"old-{number}", lease=0.001, retention=0.001)
    until_forgotten_sync(shop.store, *(storage_key("", f"old-{number}") for number in range(7)))

    assert shop.rows("purge", "--batch", "2") == [{"deleted": 7}]
    assert shop.rows("purge") == [{"deleted": 0}]
    assert len(shop.rows("list")) == 4


def test_a_purge_leaves_others_every_other_moment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's writers do not queue: beside one that begins again at once the others wait for tenths of a second."""
    rests: list[float] = []
    ticks = iter(range(1_000))
    for number in range(5):
        shop.claim(f"old-{number}", lease=0.001, retention=0.001)
    until_forgotten_sync(shop.store, *(storage_key("", f"old-{number}") for number in range(5)))
    monkeypatch.setattr(
        "idempotency.cli.time", SimpleNamespace(sleep=rests.append, monotonic=lambda: float(next(ticks)))
    )
    assert shop.rows("purge", "--batch", "2") == [{"deleted": 5}]
    assert rests == [1.0, 1.0, 1.0], "as long as each batch took"


# Outcomes of other kinds.


def test_a_sealed_outcome_is_named_as_such_and_needs_no_key(shop: Shop) -> None:
    sealing = SyncEncryptedStore(shop.store, KeyRing({"a": bytes(32)}, current="a"))
    claim = shop.claim("sealed", lease=60.0)
    assert sealing.complete(Claim(*claim), ANSWER, retention=60.0)

    assert shop.rows("show", "sealed")[0]["outcome"] == "sealed"


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (b'{"format":1,"outcome":"value","value":"4242"}', "value"),
        (b'{"format":1,"outcome":"unreplayable","reason":"4242","status_code":200}', "unreplayable 200"),
        (b'{"format":1,"outcome":"4242"}', "unreadable"),
        (b'{"format":1,"outcome":["4242"],"status_code":"4242"}', "unreadable"),
        (b'{"legacy":"4242"}', "unreadable"),
    ],
)
def test_an_outcome_is_told_by_its_kind(shop: Shop, outcome: bytes, kind: str) -> None:
    assert shop.store.complete(shop.claim("other", lease=60.0), outcome, retention=60.0)

    assert shop.rows("show", "other")[0]["outcome"] == kind


# doctor


def test_the_doctor_finds_a_sound_file_sound_and_says_what_it_can_promise(shop: Shop) -> None:
    findings = {row["check"]: row for row in shop.rows("doctor")}

    assert {row["verdict"] for row in findings.values()} == {"ok", "info"}
    assert {"claim", "clock", "record", "fence", "latency", "durability"} <= set(findings)
    assert "effectively once" in findings["promises"]["detail"]
    assert len(shop.rows("list")) == 4


def test_the_doctors_findings_are_exit_code_3(shop: Shop) -> None:
    assert shop.run("doctor", url=shop.url + "?synchronous=NORMAL") == 3
    out = shop.capsys.readouterr().out
    assert "a power failure may undo the last records" in out
    assert "the warnings above can break them" in out


def test_the_doctor_says_that_memory_is_one_process(shop: Shop) -> None:
    assert shop.run("doctor", url="memory:") == 0
    assert "records end with the process" in shop.capsys.readouterr().out


def test_the_doctor_examines_redis(shop: Shop, own_redis: Any) -> None:
    shop.run("doctor", "--json", url=with_long_deadline(own_redis.url))

    findings = {row["check"]: row for row in map(json.loads, shop.capsys.readouterr().out.splitlines())}
    assert (findings["claim"]["verdict"], findings["clock"]["verdict"]) == ("ok", "ok")
    assert {"version", "role", "eviction", "durability", "failover", "promises"} <= set(findings)


def test_while_something_fails_the_doctor_promises_nothing(shop: Shop, own_redis: Any) -> None:
    shop.run("doctor", "--json", url=with_long_deadline(f"{own_redis.url}?wait_replicas=0"))
    before = shop.capsys.readouterr().out.splitlines()[-1]
    import redis

    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", 50_000_000)

    assert shop.run("doctor", "--json", url=with_long_deadline(own_redis.url)) == 3
    assert "none, until the failures above are corrected" not in before
    assert "none, until the failures above are corrected" in shop.capsys.readouterr().out.splitlines()[-1]


def test_the_doctor_examines_every_primary_of_a_cluster(shop: Shop, redis_cluster: Any) -> None:
    shop.run(
        "doctor", "--json", url=with_long_deadline(redis_cluster.url.replace("redis://", "redis+cluster://"))
    )

    findings = [json.loads(line) for line in shop.capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in findings if row["check"] == "role"] == ["ok"] * len(redis_cluster.nodes)


def test_the_doctor_examines_the_primary_that_a_sentinel_names(shop: Shop, redis_sentinels: Any) -> None:
    host = f"127.0.0.1:{redis_sentinels.sentinel.port}"
    shop.run("doctor", "--json", url=with_long_deadline(f"redis+sentinel://{host}/{redis_sentinels.name}/0"))

    findings = {row["check"]: row for row in map(json.loads, shop.capsys.readouterr().out.splitlines())}
    assert findings["role"]["verdict"] == "ok"
    assert findings["failover"]["verdict"] == "warn"  # a replica, and no write waits for it


def test_settings_that_may_not_be_read_are_a_warning_after_a_sound_probe(shop: Shop, own_redis: Any) -> None:
    import redis

    with redis.Redis.from_url(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">hunter2", "~*", "+@all", "-info")
    url = with_long_deadline(own_redis.url.replace("redis://", "redis://app:hunter2@"))

    assert shop.run("doctor", "--json", url=url) == 3
    findings = {row["check"]: row for row in map(json.loads, shop.capsys.readouterr().out.splitlines())}
    assert findings["claim"]["verdict"] == "ok"
    assert findings["settings"]["verdict"] == "warn"
    assert "hunter2" not in json.dumps(findings)


def test_the_doctor_examines_postgres(shop: Shop, postgres_url: str) -> None:
    shop.run("doctor", "--json", url=with_long_deadline(postgres_url))

    findings = {row["check"]: row for row in map(json.loads, shop.capsys.readouterr().out.splitlines())}
    assert (findings["claim"]["verdict"], findings["schema"]["verdict"]) == ("ok", "ok")
    assert "effectively once" in findings["promises"]["detail"]


# When it goes wrong.


def test_a_misspelt_path_is_exit_code_2_and_makes_no_file(shop: Shop) -> None:
    misspelt = shop.path.with_name("recrods.db")

    assert shop.run("list", url=f"sqlite:///{misspelt}") == 2
    assert "there is no file" in shop.error()
    assert not misspelt.exists()


def test_a_server_that_is_not_there_is_exit_code_2_and_its_password_is_not_shown(shop: Shop) -> None:
    for command in (["show", "k"], ["list"], ["release", "k"], ["doctor"]):
        assert shop.run(*command, url="redis://:hunter2@127.0.0.1:9/0") == 2
    assert "hunter2" not in shop.error()


def test_a_driver_that_is_not_installed_is_exit_code_2_and_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("idempotency.stores.") and "redis" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)

    assert shop.run("list", url="redis://localhost") == 2
    assert "asgi-idempotency[redis]" in shop.error()


def test_help_is_no_error(shop: Shop) -> None:
    assert main(["--help"]) == 0
    assert "doctor" in shop.capsys.readouterr().out


def test_a_wrong_command_line_is_exit_code_64(shop: Shop) -> None:
    assert shop.run("no-such-command") == 64
    assert shop.run("list", "--limit", "0") == 64
    assert shop.run("list", url="gopher://host") == 64
    assert shop.run("show", '"open') == 64


def test_the_store_may_come_from_the_environment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IDEMPOTENCY_STORE", raising=False)
    assert main(["list"]) == 64
    assert "IDEMPOTENCY_STORE" in shop.error()
    monkeypatch.setenv("IDEMPOTENCY_STORE", shop.url)
    assert main(["list"]) == 0


def test_a_reader_that_has_seen_enough_is_no_error(shop: Shop) -> None:
    command = Path(sysconfig.get_path("scripts")) / "idempotency"
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [command, "list", "--store", shop.url],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    os.close(writing)

    assert (run.returncode, run.stderr) == (0, b"")
