"""The settings: defaults, validation with all mistakes at once, and no secret in any message."""

from __future__ import annotations

import errno
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ml_api.settings import SettingsError, load_settings, unknown_variables

GUIDE_DEFAULTS = {
    "log_level": "INFO",
    "redis_enabled": False,
    "redis_host": "localhost",
    "redis_port": 6379,
    "redis_db": 0,
    "redis_password": None,
    "redis_ttl_seconds": 3600,
}


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_API_KEY", "a-secret-of-the-test")


def test_the_defaults_equal_those_of_the_guide() -> None:
    settings = load_settings()
    assert {name: getattr(settings, name) for name in GUIDE_DEFAULTS} == GUIDE_DEFAULTS


def test_no_origin_is_allowed_by_default() -> None:
    assert load_settings().origins == ()  # the guide has `*`: any page with the key


def test_the_default_lease_is_between_handler_timeout_and_wait() -> None:
    settings = load_settings()
    assert settings.handler_timeout < settings.lease < settings.wait


def test_environment_variables_override_the_dotenv_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ML_SERVICE_REDIS_PORT=7000\nML_SERVICE_REDIS_DB=3\nOTHER=1\n")
    monkeypatch.setenv("ML_SERVICE_REDIS_DB", "4")
    settings = load_settings()
    assert (settings.redis_port, settings.redis_db) == (7000, 4)


def test_a_dotenv_file_that_is_not_utf8_is_refused_by_name() -> None:
    Path(".env").write_bytes(b"ML_SERVICE_REDIS_PASSWORD=\xff")
    with pytest.raises(SettingsError, match=r"^\.env cannot be read: it is not UTF-8$"):
        load_settings()


def test_a_dotenv_file_without_permission_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # as in a directory of another user
    with pytest.raises(SettingsError, match=r"^\.env cannot be read: Permission denied$"):
        load_settings()


def test_all_mistakes_are_reported_together_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_SERVICE_API_KEY")
    monkeypatch.setenv("ML_SERVICE_REDIS_PORT", "99999")
    monkeypatch.setenv("ML_SERVICE_ON_STORE_ERROR", "shrug")
    monkeypatch.setenv("ML_SERVICE_MODEL_PATH", "/no/such/model.txt")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    message = str(refused.value)
    for name in ("API_KEY", "REDIS_PORT", "ON_STORE_ERROR", "MODEL_PATH"):
        assert f"ML_SERVICE_{name}: " in message
    assert "4 mistakes" in message


@pytest.mark.parametrize("empty", ["", "   "])
def test_a_blank_api_key_is_refused(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.setenv("ML_SERVICE_API_KEY", empty)
    with pytest.raises(SettingsError, match="an API key is required"):
        load_settings()


def test_a_trailing_line_feed_of_the_api_key_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_SERVICE_API_KEY", "a-key-of-the-test\n")
    key = load_settings().api_key
    assert key is not None
    assert key.get_secret_value() == "a-key-of-the-test"


def test_secrets_are_neither_in_repr_nor_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_PASSWORD", "p4ss/w0rd")
    monkeypatch.setenv("ML_SERVICE_ADMIN_KEY", "adm1n-of-the-test")
    shown = repr(load_settings())
    assert not any(secret in shown for secret in ("a-secret-of-the-test", "p4ss", "adm1n-of-the-test"))
    monkeypatch.setenv("ML_SERVICE_REDIS_URL", "http://:p4ss@host")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "p4ss" not in str(refused.value)
    assert "ML_SERVICE_REDIS_URL: should start with" in str(refused.value)


def test_redis_is_off_unless_enabled_and_its_password_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_PASSWORD", "p@ss/w:rd")
    assert load_settings().redis is None
    monkeypatch.setenv("ML_SERVICE_REDIS_ENABLED", "true")
    assert load_settings().redis == "redis://:p%40ss%2Fw%3Ard@localhost:6379/0"
    monkeypatch.setenv("ML_SERVICE_REDIS_HOST", "::1")
    monkeypatch.setenv("ML_SERVICE_REDIS_PASSWORD", "")
    assert load_settings().redis == "redis://[::1]:6379/0"
    monkeypatch.setenv("ML_SERVICE_REDIS_URL", "rediss://:secret@cache:6380/1")
    assert load_settings().redis == "rediss://:secret@cache:6380/1"


@pytest.mark.parametrize("host", ["redis", "cache-1.internal", "10.0.0.7", "a b/c@d", "h#1"])
def test_any_redis_host_gives_a_url_with_that_host(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_ENABLED", "true")
    monkeypatch.setenv("ML_SERVICE_REDIS_HOST", host)
    url = load_settings().redis
    assert url is not None
    assert unquote(urlsplit(url).netloc.rpartition(":")[0]) == host


@pytest.mark.parametrize("host", ["localhost:6379", "redis://localhost", "rediss://cache:6380/1", "[::1]"])
def test_a_redis_host_with_a_scheme_or_a_port_is_refused_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_HOST", host)
    with pytest.raises(SettingsError, match="ML_SERVICE_REDIS_HOST: should be a host name or an IP address"):
        load_settings()


def test_an_unused_redis_address_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_HOST", "localhost")  # the value of the template
    assert load_settings().unused is None
    monkeypatch.setenv("ML_SERVICE_REDIS_URL", "redis://cache:6379/0")
    assert load_settings().unused == "ML_SERVICE_REDIS_URL"
    monkeypatch.setenv("ML_SERVICE_REDIS_ENABLED", "true")
    assert load_settings().unused is None


def test_a_missing_model_file_is_refused_unless_rule_fallback_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_MODEL_PATH", "/no/such/model.txt")
    with pytest.raises(SettingsError, match="MODEL_PATH: there is no such file"):
        load_settings()
    monkeypatch.setenv("ML_SERVICE_RULE_FALLBACK", "true")
    assert load_settings().model_path == Path("/no/such/model.txt")


def test_an_existing_model_file_is_accepted_unread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()  # its content is checked when it is loaded
    monkeypatch.setenv("ML_SERVICE_MODEL_PATH", str(tmp_path / "model.txt"))
    assert load_settings().model_path == tmp_path / "model.txt"


@pytest.mark.parametrize(
    "name",
    ["API_KEYS_FILE", "MODEL_PATH", "MODELS_DIR", "MODEL_VERSION", "REDIS_URL", "ADMIN_KEY"],
)
def test_a_blank_variable_is_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ML_SERVICE_{name}", "")
    assert getattr(load_settings(), name.lower()) is None


def test_a_log_level_may_be_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_LOG_LEVEL", "warning")
    assert load_settings().log_level == "WARNING"


@pytest.mark.parametrize("admin", ["a-secret-of-the-test", "a-secret-of-the-test\n", "the-key-of-k1"])
def test_an_admin_key_equal_to_an_api_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, admin: str
) -> None:
    file = tmp_path / "keys"
    file.write_text("backend = the-key-of-k1\n")
    monkeypatch.setenv("ML_SERVICE_API_KEYS_FILE", str(file))
    monkeypatch.setenv("ML_SERVICE_ADMIN_KEY", admin)
    with pytest.raises(SettingsError, match="ADMIN_KEY: should not be the API key of a caller"):
        load_settings()


def test_a_trailing_line_feed_of_the_admin_key_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_ADMIN_KEY", "adm1n-of-the-test\n")
    key = load_settings().admin_key
    assert key is not None
    assert key.get_secret_value() == "adm1n-of-the-test"


@pytest.mark.parametrize("name", ["API_KEY", "ADMIN_KEY"])
@pytest.mark.parametrize(
    "key", ["two-keys-of-the-test\nin-one-secret", "a-key-of-the\ttest", "a-key-of-the-test\x7f"]
)
def test_a_key_that_no_header_can_carry_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    monkeypatch.setenv(f"ML_SERVICE_{name}", key)
    with pytest.raises(
        SettingsError, match=f"1 mistake:\n  ML_SERVICE_{name}: should be one line of printable"
    ):
        load_settings()


@pytest.mark.parametrize("name", ["STORE_DEADLINE", "HANDLER_TIMEOUT", "BODY_TIMEOUT", "HEADER_TIMEOUT"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_a_duration_that_is_not_positive_and_finite_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"ML_SERVICE_{name}", value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


@pytest.mark.parametrize("seconds", ["0", "315360001", "1e30"])
def test_a_ttl_outside_one_second_to_ten_years_is_refused(
    monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_TTL_SECONDS", seconds)
    with pytest.raises(SettingsError, match="REDIS_TTL_SECONDS"):
        load_settings()


def test_a_keys_file_replaces_the_single_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ML_SERVICE_API_KEY")
    file = tmp_path / "keys"
    file.write_text("backend = the-key-of-k1\n")
    monkeypatch.setenv("ML_SERVICE_API_KEYS_FILE", str(file))
    assert load_settings().api_keys_file == file


def test_a_bad_keys_file_is_reported_with_its_line_and_without_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ML_SERVICE_API_KEY")
    file = tmp_path / "keys"
    file.write_text("backend = the-key-of-k1\nsecret-without-name\n")
    monkeypatch.setenv("ML_SERVICE_API_KEYS_FILE", str(file))
    with pytest.raises(SettingsError, match="line 2") as refused:
        load_settings()
    assert "secret-without-name" not in str(refused.value)
    assert "1 mistake:" in str(refused.value)


def test_unknown_variables_are_reported_with_the_closest_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_REDIS_ENABLE", "true")
    Path(".env").write_text("ML_SERVICE_SHOE_SIZE=44\nML_SERVICE_REDIS_DB=1\n")
    assert list(unknown_variables()) == [
        "ML_SERVICE_REDIS_ENABLE is not a setting; did you mean ML_SERVICE_REDIS_ENABLED?",
        "ML_SERVICE_SHOE_SIZE is not a setting",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ML_SERVICE_PORT", "tcp://10.0.0.1:8000"),
        ("ML_SERVICE_SERVICE_HOST", "10.0.0.1"),
        ("ML_SERVICE_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_variables_that_kubernetes_injects_are_ignored(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    load_settings()
    assert list(unknown_variables()) == []


def test_origins_are_split_and_stripped_of_spaces_and_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_SERVICE_ALLOWED_ORIGIN", "https://a.example/, ,https://b.example,")
    assert load_settings().origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    "origins",
    ["https://a.example:8443", "http://localhost,capacitor://app", "null", "*", "https://a.example,*"],
)
def test_every_origin_that_a_browser_can_send_is_accepted(
    monkeypatch: pytest.MonkeyPatch, origins: str
) -> None:
    monkeypatch.setenv("ML_SERVICE_ALLOWED_ORIGIN", origins)
    assert load_settings().origins == tuple(origins.split(","))


@pytest.mark.parametrize(
    "origins",
    ["a.example", "https://a.example/app", "https://a.example https://b.example", "https://*.a.example"],
)
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("ML_SERVICE_ALLOWED_ORIGIN", f"https://b.example,{origins}")
    with pytest.raises(SettingsError, match="ALLOWED_ORIGIN: should be origins such as"):
        load_settings()


def test_the_dotenv_template_gives_the_defaults_once_it_has_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    template = (Path(__file__).parents[1] / ".env.example").read_text()
    Path(".env").write_text(template)
    monkeypatch.delenv("ML_SERVICE_API_KEY")
    with pytest.raises(SettingsError, match="1 mistake:\n  ML_SERVICE_API_KEY"):
        load_settings()
    Path(".env").write_text(template.replace("API_KEY=", "API_KEY=a-key-of-the-test"))
    assert list(unknown_variables()) == []
    settings = load_settings()
    assert {name: getattr(settings, name) for name in GUIDE_DEFAULTS} == GUIDE_DEFAULTS
