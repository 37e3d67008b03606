"""API keys: caller names, rotation without a restart, and errors of the keys file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ml_api.http.api_keys import ApiKeys, KeysFileError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_single_key_has_an_empty_name_and_other_keys_have_none() -> None:
    keys = ApiKeys(single="right")
    assert keys.name_of(b"right") == ""
    assert keys.name_of(b"wrong") is None
    assert keys.name_of(b"") is None
    assert keys.name_of(b"\xff\x00") is None


def test_the_single_key_stays_valid_without_a_keys_file(clock: Clock) -> None:
    keys = ApiKeys(single="right", clock=clock)
    clock.now = 3600.0
    assert keys.name_of(b"right") == ""


def test_without_any_key_every_request_is_refused() -> None:
    assert ApiKeys().name_of(b"") is None


def test_two_keys_may_share_a_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        "# rotation of March\nbackend = the-old-key-1\nbackend = the-new-key-2\n\nops=third = with equals\n"
    )
    keys = ApiKeys(file=file)
    assert [keys.name_of(key) for key in (b"the-old-key-1", b"the-new-key-2", b"third = with equals")] == [
        "backend",
        "backend",
        "ops",
    ]


def test_a_byte_order_mark_of_the_keys_file_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("backend = the-new-key-2\n", "utf-8-sig")
    assert ApiKeys(file=file).name_of(b"the-new-key-2") == "backend"


def test_a_changed_keys_file_is_read_within_a_second_and_not_on_every_request(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ml_api.http.api_keys")
    file = tmp_path / "keys"
    file.write_text("backend = the-old-key-1\n")
    keys = ApiKeys(file=file, clock=clock)
    for begun, key in ((0.0, "a-newer-key-1"), (1.0, "newest of all")):
        file.write_text(f"backend = {key}\n")
        clock.now = begun + 0.9
        assert keys.name_of(key.encode()) is None
        clock.now = begun + 1.0
        assert keys.name_of(key.encode()) == "backend"
    assert keys.name_of(b"the-old-key-1") is None
    assert [record.getMessage() for record in caplog.records] == ["API keys read again"] * 2


@pytest.mark.parametrize("broken", ["no equals sign\n", "", None])
def test_a_keys_file_that_becomes_unusable_keeps_the_last_keys_and_logs_one_error(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    file = tmp_path / "keys"
    file.write_text("backend = the-old-key-1\n")
    keys = ApiKeys(file=file, clock=clock)
    file.unlink()
    if broken is not None:
        file.write_text(broken)
    for clock.now in (1.0, 2.0, 3.0):
        assert keys.name_of(b"the-old-key-1") == "backend"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "no equals sign" not in str(vars(errors[0]))
    assert str(file) in vars(errors[0])["reason"]
    file.write_text("backend = a-repaired-key\n")
    clock.now = 4.0
    assert keys.name_of(b"a-repaired-key") == "backend"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("= key", "line 1"),
        ("a = the-old-key-1\nb b = 2", "line 2"),
        ("name =", "line 1"),
        ("a = the-old-key-1\nb = the-old-key-1", "twice"),
        ("# nothing", "no key"),
        ("ä = k", "line 1"),
        ("a = the-old-key-1\nb = short", "line 2: the key should have at least 12 characters"),
        ("a = abababababababab", "line 1: the key should not repeat a few characters"),
    ],
)
def test_an_unusable_keys_file_is_refused_with_the_line(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(KeysFileError, match=reason):
        ApiKeys(file=file)


def test_an_unreadable_keys_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe=\x00")
    with pytest.raises(KeysFileError, match="UTF-8"):
        ApiKeys(file=tmp_path / "binary")
    with pytest.raises(KeysFileError, match="cannot be read"):
        ApiKeys(file=tmp_path / "absent")
