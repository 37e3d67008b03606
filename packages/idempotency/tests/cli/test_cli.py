"""The command line: exit codes, output, and secrets that it never prints."""

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


class CommandLine:
    """The command line over a SQLite file with one record of each kind."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self.store = SyncSQLiteStore(path, synchronous="NORMAL")  # fast: durability is not tested here
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
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    cli = CommandLine(tmp_path / "records.db", capsys)
    yield cli
    cli.store.close()


# show


def test_show_prints_a_running_record(cli: CommandLine) -> None:
    (row,) = cli.rows("show", "running")

    assert (row["key"], row["state"], row["attempt"]) == ("running", "running", 1)
    assert row["key_id"] == key_id(storage_key("", "running"))
    assert 3590 < row["lease_left_s"] <= 3600
    assert 0 < row["age_s"] < 60
    assert "outcome" not in row


def test_show_prints_a_completed_record_without_its_content(cli: CommandLine) -> None:
    (row,) = cli.rows("show", "completed")

    assert (row["state"], row["outcome"], row["outcome_bytes"]) == ("completed", "response 201", len(ANSWER))
    assert 0 <= row["age_s"] < 60
    assert 3500 < row["expires_in_s"] <= 3600


def test_show_outcome_prints_the_outcome(cli: CommandLine) -> None:
    (row,) = cli.rows("show", "completed", "--show-outcome")

    assert row["outcome_text"].encode() == ANSWER


def test_show_calls_a_run_with_an_ended_lease_abandoned(cli: CommandLine) -> None:
    (row,) = cli.rows("show", "abandoned")

    assert row["state"] == "abandoned"
    assert row["lease_left_s"] <= 0


def test_show_of_an_absent_record_exits_with_1(cli: CommandLine) -> None:
    assert cli.run("show", "no-such") == 1
    assert "there is no record" in cli.error()


def test_show_accepts_a_key_with_the_quotes_of_its_header(cli: CommandLine) -> None:
    assert cli.rows("show", '"running"')[0]["key_id"] == cli.rows("show", "running")[0]["key_id"]


def test_show_finds_a_key_under_its_tenant_only(cli: CommandLine) -> None:
    assert cli.run("show", "hers") == 1
    (row,) = cli.rows("show", "hers", "--tenant", "alice smith")
    assert row["key"] == "alice%20smith:hers"
    assert cli.rows("show", row["key"], "--stored")[0]["key_id"] == row["key_id"]


def test_show_without_json_prints_one_field_per_line(cli: CommandLine) -> None:
    cli.run("show", "completed")

    lines = cli.capsys.readouterr().out.splitlines()
    assert "state          completed" in lines
    assert "outcome        response 201" in lines


# list


def test_list_shows_every_record_once(cli: CommandLine) -> None:
    keys = [row["key"] for row in cli.rows("list")]

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
def test_list_filters_by_state_tenant_and_id(cli: CommandLine, filters: list[str], keys: set[str]) -> None:
    assert {row["key"] for row in cli.rows("list", *filters)} == keys


def test_list_stops_at_its_limit_and_reads_past_one_page(cli: CommandLine) -> None:
    for number in range(600):
        cli.claim(f"more-{number}", lease=60.0)

    assert len(cli.rows("list", "--limit", "550")) == 550
    assert len(cli.rows("list", "--limit", "1000")) == 604
    assert len(cli.rows("list")) == 100


def test_list_without_json_prints_a_table(cli: CommandLine) -> None:
    cli.run("list", "--state", "completed")

    head, row = cli.capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["key", "key_id", "state"]
    assert row.split()[0] == "completed"


# Secrets.


def test_no_command_prints_an_owner_a_header_or_a_body_without_show_outcome(cli: CommandLine) -> None:
    for command in (
        ["list"],
        ["show", "running"],
        ["show", "completed"],
        ["doctor"],
        ["release", "completed"],
    ):
        for option in ([], ["--json"]):
            cli.run(*command, *option)
    cli.run("show", "running", "--show-outcome")

    shown = "".join(cli.capsys.readouterr())
    assert shown.count("response 201") >= 2
    assert not any(secret in shown for secret in ("OWNER-TOKEN", OWNER.hex(), "4242", "x-secret-header"))


# release


def test_release_frees_the_key_of_an_abandoned_run(cli: CommandLine) -> None:
    (row,) = cli.rows("release", "abandoned")

    assert (row["was"], row["freed"]) == ("abandoned", True)
    assert cli.claim("abandoned", lease=1.0).attempt == 1


def test_release_needs_force_for_a_run_under_lease(cli: CommandLine) -> None:
    assert cli.run("release", "running") == 3
    assert "of its lease left" in cli.error()
    assert cli.run("show", "running") == 0
    assert cli.run("release", "running", "--force") == 0
    assert cli.run("show", "running") == 1


def test_release_needs_force_for_a_completed_record(cli: CommandLine) -> None:
    assert cli.run("release", "completed") == 3
    assert "--force forgets it" in cli.error()
    assert cli.run("show", "completed") == 0
    assert cli.run("release", "completed", "--force") == 0
    assert cli.run("show", "completed") == 1


def test_release_of_an_absent_record_exits_with_1(cli: CommandLine) -> None:
    assert cli.run("release", "no-such", "--force") == 1


def test_release_spares_a_run_that_took_over_after_the_record_was_read(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = SyncSQLiteStore.get

    def get_then_take_over(self: SyncSQLiteStore, key: Any) -> Any:
        record = get(self, key)
        cli.store.acquire(
            key, fingerprint=Fingerprint(b"f" * 32), owner=Owner(b"n" * 16), lease=3600.0, retention=3600.0
        )
        return record

    monkeypatch.setattr(SyncSQLiteStore, "get", get_then_take_over)
    assert cli.run("release", "abandoned") == 3
    assert "changed in the meantime" in cli.error()
    monkeypatch.undo()
    assert cli.rows("show", "abandoned")[0]["attempt"] == 2


def test_release_needs_force_for_an_unreadable_record(cli: CommandLine) -> None:
    connection = sqlite3.connect(cli.path)
    connection.execute("UPDATE idempotency_record SET fingerprint = 'text' WHERE key = 'completed'")
    connection.commit()
    connection.close()

    assert cli.run("show", "completed") == 3
    assert cli.run("release", "completed") == 3
    assert "--force deletes it" in cli.error()
    assert cli.rows("release", "completed", "--force")[0]["was"] == "unreadable"
    assert cli.run("show", "completed") == 1


# purge


def test_purge_deletes_all_expired_records_in_batches(cli: CommandLine) -> None:
    for number in range(7):
        cli.claim(f"old-{number}", lease=0.001, retention=0.001)
    until_forgotten_sync(cli.store, *(storage_key("", f"old-{number}") for number in range(7)))

    assert cli.rows("purge", "--batch", "2") == [{"deleted": 7}]
    assert cli.rows("purge") == [{"deleted": 0}]
    assert len(cli.rows("list")) == 4


def test_purge_pauses_after_each_batch_for_as_long_as_the_batch_took(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's writers do not queue: without a pause, other writers would wait for tenths of a second."""
    pauses: list[float] = []
    ticks = iter(range(1_000))
    for number in range(5):
        cli.claim(f"old-{number}", lease=0.001, retention=0.001)
    until_forgotten_sync(cli.store, *(storage_key("", f"old-{number}") for number in range(5)))
    monkeypatch.setattr(
        "idempotency.cli.time", SimpleNamespace(sleep=pauses.append, monotonic=lambda: float(next(ticks)))
    )
    assert cli.rows("purge", "--batch", "2") == [{"deleted": 5}]
    assert pauses == [1.0, 1.0, 1.0], "as long as each batch took"


# Kinds of outcomes.


def test_show_calls_an_encrypted_outcome_sealed_without_the_encryption_key(cli: CommandLine) -> None:
    encrypting = SyncEncryptedStore(cli.store, KeyRing({"a": bytes(32)}, current="a"))
    claim = cli.claim("sealed", lease=60.0)
    assert encrypting.complete(Claim(*claim), ANSWER, retention=60.0)

    assert cli.rows("show", "sealed")[0]["outcome"] == "sealed"


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
def test_show_prints_the_kind_of_an_outcome_and_no_content(
    cli: CommandLine, outcome: bytes, kind: str
) -> None:
    assert cli.store.complete(cli.claim("other", lease=60.0), outcome, retention=60.0)

    assert cli.rows("show", "other")[0]["outcome"] == kind


# doctor


def test_doctor_passes_a_sound_file_and_states_the_promise(cli: CommandLine) -> None:
    findings = {row["check"]: row for row in cli.rows("doctor")}

    assert {row["verdict"] for row in findings.values()} == {"ok", "info"}
    assert {"claim", "clock", "record", "fence", "latency", "durability"} <= set(findings)
    assert "effectively once" in findings["promises"]["detail"]
    assert len(cli.rows("list")) == 4


def test_doctor_exits_with_3_if_it_warns(cli: CommandLine) -> None:
    assert cli.run("doctor", url=cli.url + "?synchronous=NORMAL") == 3
    out = cli.capsys.readouterr().out
    assert "a power failure may undo the last records" in out
    assert "the warnings above can break them" in out


def test_doctor_states_that_memory_records_end_with_the_process(cli: CommandLine) -> None:
    assert cli.run("doctor", url="memory:") == 0
    assert "records end with the process" in cli.capsys.readouterr().out


def test_doctor_checks_redis(cli: CommandLine, own_redis: Any) -> None:
    cli.run("doctor", "--json", url=with_long_deadline(own_redis.url))

    findings = {row["check"]: row for row in map(json.loads, cli.capsys.readouterr().out.splitlines())}
    assert (findings["claim"]["verdict"], findings["clock"]["verdict"]) == ("ok", "ok")
    assert {"version", "role", "eviction", "durability", "failover", "promises"} <= set(findings)


def test_doctor_promises_nothing_while_a_check_fails(cli: CommandLine, own_redis: Any) -> None:
    cli.run("doctor", "--json", url=with_long_deadline(f"{own_redis.url}?wait_replicas=0"))
    before = cli.capsys.readouterr().out.splitlines()[-1]
    import redis

    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", 50_000_000)

    assert cli.run("doctor", "--json", url=with_long_deadline(own_redis.url)) == 3
    assert "none, until the failures above are corrected" not in before
    assert "none, until the failures above are corrected" in cli.capsys.readouterr().out.splitlines()[-1]


def test_doctor_checks_every_primary_of_a_cluster(cli: CommandLine, redis_cluster: Any) -> None:
    cli.run(
        "doctor", "--json", url=with_long_deadline(redis_cluster.url.replace("redis://", "redis+cluster://"))
    )

    findings = [json.loads(line) for line in cli.capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in findings if row["check"] == "role"] == ["ok"] * len(redis_cluster.nodes)


def test_doctor_checks_the_primary_that_sentinel_names(cli: CommandLine, redis_sentinels: Any) -> None:
    host = f"127.0.0.1:{redis_sentinels.sentinel.port}"
    cli.run("doctor", "--json", url=with_long_deadline(f"redis+sentinel://{host}/{redis_sentinels.name}/0"))

    findings = {row["check"]: row for row in map(json.loads, cli.capsys.readouterr().out.splitlines())}
    assert findings["role"]["verdict"] == "ok"
    assert findings["failover"]["verdict"] == "warn"  # there is a replica, and no write waits for it


def test_doctor_warns_if_it_may_not_read_the_settings(cli: CommandLine, own_redis: Any) -> None:
    import redis

    with redis.Redis.from_url(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">hunter2", "~*", "+@all", "-info")
    url = with_long_deadline(own_redis.url.replace("redis://", "redis://app:hunter2@"))

    assert cli.run("doctor", "--json", url=url) == 3
    findings = {row["check"]: row for row in map(json.loads, cli.capsys.readouterr().out.splitlines())}
    assert findings["claim"]["verdict"] == "ok"
    assert findings["settings"]["verdict"] == "warn"
    assert "hunter2" not in json.dumps(findings)


def test_doctor_checks_postgres(cli: CommandLine, postgres_url: str) -> None:
    cli.run("doctor", "--json", url=with_long_deadline(postgres_url))

    findings = {row["check"]: row for row in map(json.loads, cli.capsys.readouterr().out.splitlines())}
    assert (findings["claim"]["verdict"], findings["schema"]["verdict"]) == ("ok", "ok")
    assert "effectively once" in findings["promises"]["detail"]


# Errors.


def test_missing_database_file_exits_with_2_and_is_not_created(cli: CommandLine) -> None:
    missing = cli.path.with_name("recrods.db")

    assert cli.run("list", url=f"sqlite:///{missing}") == 2
    assert "there is no file" in cli.error()
    assert not missing.exists()


def test_unreachable_server_exits_with_2_and_no_password_is_printed(cli: CommandLine) -> None:
    for command in (["show", "k"], ["list"], ["release", "k"], ["doctor"]):
        assert cli.run(*command, url="redis://:hunter2@127.0.0.1:9/0") == 2
    assert "hunter2" not in cli.error()


def test_missing_driver_exits_with_2_and_the_extra_is_named(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("idempotency.stores.") and "redis" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)

    assert cli.run("list", url="redis://localhost") == 2
    assert "asgi-idempotency[redis]" in cli.error()


def test_help_exits_with_0(cli: CommandLine) -> None:
    assert main(["--help"]) == 0
    assert "doctor" in cli.capsys.readouterr().out


def test_wrong_command_line_exits_with_64(cli: CommandLine) -> None:
    assert cli.run("no-such-command") == 64
    assert cli.run("list", "--limit", "0") == 64
    assert cli.run("list", url="gopher://host") == 64
    assert cli.run("show", '"open') == 64


def test_store_url_is_read_from_the_environment(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IDEMPOTENCY_STORE", raising=False)
    assert main(["list"]) == 64
    assert "IDEMPOTENCY_STORE" in cli.error()
    monkeypatch.setenv("IDEMPOTENCY_STORE", cli.url)
    assert main(["list"]) == 0


def test_closed_output_pipe_exits_with_0(cli: CommandLine) -> None:
    command = Path(sysconfig.get_path("scripts")) / "idempotency"
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [command, "list", "--store", cli.url],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    os.close(writing)

    assert (run.returncode, run.stderr) == (0, b"")
