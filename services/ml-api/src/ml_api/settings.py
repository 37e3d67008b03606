"""
The settings: environment variables with the prefix `ML_SERVICE_`, and a `.env` file. All are checked together.

Host and port are command line options, not settings, because Kubernetes sets `ML_SERVICE_PORT=tcp://...` in every pod
of a namespace with a Service called `ml-service`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_api import Unusable
from ml_api.http.api_keys import ApiKeys, KeysFileError, weakness_of

__all__ = [
    "BASE_URL",
    "METRICS_DIRECTORY",
    "PREFIX",
    "RUNTIME_DIRECTORY",
    "Settings",
    "SettingsError",
    "load_settings",
    "plain_implementation",
    "unknown_variables",
]

PREFIX = "ML_SERVICE_"

BASE_URL = "ML_API_BASE_URL"
"""Set by `ml-api serve`: its base URL, for log messages."""

RUNTIME_DIRECTORY = "ML_API_RUNTIME_DIRECTORY"
"""Set by `ml-api serve` for its workers: a private directory with one socket per worker."""

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""
Set by `ml-api serve` if there are several workers: the directory where prometheus-client keeps their numbers. It reads
this variable when it is imported.
"""

# Variables that Kubernetes sets for a Service called "ml-service". They are not settings, and not typing mistakes.
_SERVICE_LINK = re.compile(r"ML_SERVICE_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)\Z")


# What a browser sends in `Origin`: scheme, host and perhaps a port; `null` for a page without an origin.
_ORIGIN = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#*\s]+")


class SettingsError(Unusable):
    """The settings cannot be used; the message lists every mistake on its own line, without secrets."""


def _state_directory() -> Path:
    """
    Return the directory for data that must survive a restart: under $XDG_STATE_HOME or its default.

    See the XDG Base Directory Specification, 0.8.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "ml-api"


def _redis_scheme(url: SecretStr) -> SecretStr:
    schemes = tuple(f"redis{tls}{kind}://" for kind in ("", "+sentinel", "+cluster") for tls in ("", "s"))
    if not url.get_secret_value().startswith(schemes):
        raise ValueError(f"should start with one of {', '.join(schemes)}")
    return url


def _usable_keys(path: Path) -> Path:
    try:
        ApiKeys(file=path)
    except KeysFileError as error:
        raise ValueError(str(error)) from None
    return path


def _host_alone(host: str) -> str:
    if "://" in host or host.startswith("[") or host.count(":") == 1:  # an IPv6 address has more colons
        raise ValueError(
            f"should be a host name or an IP address alone; {PREFIX}REDIS_PORT is for the port, {PREFIX}REDIS_URL for "
            "a URL"
        )
    return host


def _origins_or_any(text: str) -> str:
    if not all(_ORIGIN.fullmatch(origin) for origin in _split_origins(text)):
        raise ValueError("should be origins such as https://app.example or http://localhost:3000, or *")
    return text


def _split_origins(text: str) -> tuple[str, ...]:
    return tuple(origin for part in text.split(",") if (origin := part.strip().rstrip("/")))


_Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """
    The settings of the service. Durations are in seconds, sizes in bytes.

    Attributes:
        model_path: A LightGBM text model with its manifest beside it; default the model in the package.
        model_version: The version that answers state for the model of the start; default the manifest's.
        models_dir: More models for the Open Inference Protocol: every `*.txt` with its manifest.
        only_models: A model file, or a folder of them, for the Open Inference Protocol; then there is no `/predict`.
        rule_fallback: Whether fixed rules decide if the model file is missing; else the service refuses to start.
        api_key: The only key without a name. Its records have no tenant.
        api_keys_file: A file of lines `name = key`, read again when it changes; the name is the tenant.
        admin_key: The key of `POST /admin/model`; None: without that route.
        allowed_origin: Origins for CORS, separated by commas; `*` for any; default none.
        admin_model_dir: The directory from which `POST /admin/model` may load models; default that of *only_models* or
            *model_path*. Without any of them, it refuses.
        admin_timeout: Time for loading such a model.
        max_model_bytes: Size limit of such a model file.
        redis_url: Instead of host, port, database and password; for TLS, Sentinel and Cluster.
        redis_ttl_seconds: How long an answer is kept, in Redis and in SQLite.
        store_path: The file of the SQLite store, which is used if Redis is not enabled.
        store_deadline: Time limit of one store call.
        on_store_error: `refuse` answers 503 while the store is down; `bypass` decides without protection.
        fingerprint: `decision`: a key stands for one agent and candle minute. `body`: for one JSON body.
        wait: How long a duplicate waits for the first request before it gets 409.
        lease: How long a claim stays after its process died. If it is less than *wait*, a waiting duplicate takes over.
        cap_orders: Whether orders are limited to the portfolio's cash and positions.
        explain_top: How many SHAP contributions an answer lists per asset; 0: without the member.
        max_header_bytes: For the request line and headers together; for the trailers; and for the chunk framing, beyond
            the size of the body.
        max_header_fields: Limit of the number of headers, and of the number of trailers.
        max_connections: Open connections of one worker; to accept another, the one that is idle for longest is closed.
        header_timeout: From the connection, or from the first byte of a later request, to the end of its headers.
        keep_alive_timeout: How long a connection stays open between two requests.
        write_timeout: How long a client may stop reading its answer before the connection is cut.
        rate_limit: Requests per minute for each API key's name, in one worker; 0: no limit.
        quota_bytes: Bytes of recorded answers for each API key's name, counted in each worker; 0: no limit.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,  # an empty variable, as in a template, counts as not set
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    rule_fallback: bool = False
    model_path: Path | None = None
    model_version: str | None = Field(default=None, min_length=1, max_length=100)
    models_dir: DirectoryPath | None = None
    only_models: Path | None = None

    api_keys_file: Annotated[FilePath, AfterValidator(_usable_keys)] | None = None
    api_key: SecretStr | None = Field(default=None, validate_default=True)
    admin_key: SecretStr | None = None
    allowed_origin: Annotated[str, AfterValidator(_origins_or_any)] = ""
    admin_model_dir: DirectoryPath | None = None
    admin_timeout: _Seconds = 60.0
    max_model_bytes: PositiveInt = 67_108_864

    redis_enabled: bool = False
    redis_host: Annotated[str, AfterValidator(_host_alone)] = Field(default="localhost", min_length=1)
    redis_port: int = Field(default=6379, ge=1, le=65535)
    redis_db: NonNegativeInt = 0
    redis_password: SecretStr | None = None
    redis_url: Annotated[SecretStr, AfterValidator(_redis_scheme)] | None = None
    redis_ttl_seconds: int = Field(default=3600, ge=1, le=315_360_000)
    store_path: Path = Field(default_factory=lambda: _state_directory() / "idempotency.sqlite3")
    store_deadline: _Seconds = 1.0
    on_store_error: Literal["refuse", "bypass"] = "refuse"

    fingerprint: Literal["decision", "body"] = "decision"
    wait: float = Field(default=25.0, ge=0, le=300)
    lease: float = Field(default=15.0, ge=1, le=3600)

    cap_orders: bool = False
    explain_top: int = Field(default=0, ge=0, le=11)
    rate_limit: NonNegativeInt = 60_000
    quota_bytes: NonNegativeInt = 67_108_864

    max_body_bytes: PositiveInt = 1_048_576
    max_header_bytes: int = Field(default=32_768, ge=1024)
    max_header_fields: int = Field(default=100, ge=16)
    max_connections: PositiveInt = 1_000
    header_timeout: _Seconds = 10.0
    keep_alive_timeout: _Seconds = 5.0
    write_timeout: _Seconds = 30.0
    body_timeout: _Seconds = 30.0
    handler_timeout: _Seconds = 10.0
    shutdown_timeout: PositiveInt = 30
    workers: int = Field(default=1, ge=1, le=64)

    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"

    @field_validator("api_key", mode="after")
    @classmethod
    def _some_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # A secret from a file often ends with a line feed, which a header cannot contain. An empty key, such as
        # `ML_SERVICE_API_KEY=` in a template, is not a key: it would let everybody in.
        value = SecretStr(value.get_secret_value().strip()) if value is not None else None
        if value is not None and not value.get_secret_value():
            value = None
        # A keys file that failed its check is not in `data`; its mistake is reported already.
        if value is None and info.data.get("api_keys_file", ...) is None:
            raise ValueError(
                f"an API key is required: set {PREFIX}API_KEY (make one by `openssl rand -hex 32`) "
                f"or {PREFIX}API_KEYS_FILE"
            )
        if value is not None and (weakness := weakness_of(value.get_secret_value())) is not None:
            raise ValueError(weakness)
        return value

    @field_validator("model_path", mode="after")
    @classmethod
    def _there_or_not_needed(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not value.is_file() and not info.data.get("rule_fallback"):
            raise ValueError(
                f"there is no such file; to decide by fixed rules without one, set {PREFIX}RULE_FALLBACK=true"
            )
        return value

    @field_validator("admin_key", mode="after")
    @classmethod
    def _not_every_callers(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        key = value.get_secret_value().strip() if value is not None else ""
        single, file = info.data.get("api_key"), info.data.get("api_keys_file")
        callers = ApiKeys(single=single.get_secret_value() if single else None, file=file)
        if key and callers.name_of(key.encode()) is not None:
            raise ValueError("should not be the API key of a caller, who could then replace the model")
        if key and (weakness := weakness_of(key)) is not None:
            raise ValueError(weakness)
        return SecretStr(key) if key else None

    @property
    def redis(self) -> str | None:
        """The URL of Redis, with its password; None if the SQLite store is used."""
        if not self.redis_enabled:
            return None
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        secret = f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else quote(self.redis_host, safe="")
        return f"redis://{secret}{host}:{self.redis_port}/{self.redis_db}"

    @property
    def unused(self) -> str | None:
        """The name of a Redis setting that is set although Redis is not enabled, or None."""
        if self.redis_enabled:
            return None
        for name in ("redis_url", "redis_host", "redis_password"):
            if getattr(self, name) != type(self).model_fields[name].default:
                return f"{PREFIX}{name.upper()}"
        return None

    @property
    def origins(self) -> tuple[str, ...]:
        """The allowed CORS origins; `("*",)` for any."""
        return _split_origins(self.allowed_origin)


def load_settings(**given: object) -> Settings:
    """
    Read the settings from the environment and `.env`.

    Args:
        given: Settings that override both.
    Raises:
        SettingsError: Lists every mistake with the name of its variable, but without its value.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"  {_variable(item['loc'])}: {_sentence(item['msg'])}"
            for item in error.errors(include_input=False)
        ]
        count = f"{len(lines)} mistakes" if len(lines) > 1 else "1 mistake"
        raise SettingsError("\n".join([f"the settings have {count}:", *lines])) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f".env cannot be read: {reason}") from None


def plain_implementation() -> bool:
    """
    Whether `ML_API_IMPL=plain` in the environment switches the speed-ups off: `seen_candles` and `quick_lines`.

    Each has a plain version that gives the same results. `scripts/matrix` runs the service's tests without speed-ups; a
    bug that disappears with `plain` is in one of them.

    Raises:
        SettingsError: The variable has another value.
    """
    chosen = os.environ.get("ML_API_IMPL", "")
    if chosen not in {"", "fast", "plain"}:
        raise SettingsError(f"ML_API_IMPL is {chosen!r}; set it to fast (the default) or plain")
    return chosen == "plain"


def unknown_variables() -> Iterator[str]:
    """Yield a sentence for each `ML_SERVICE_` variable, also in `.env`, that is not a setting; often it is misspelt."""
    known = {name.upper() for name in Settings.model_fields}
    for name in sorted({*os.environ, *dotenv_values(".env")}):
        setting = name.upper().removeprefix(PREFIX)
        if setting != name.upper() and setting not in known and not _SERVICE_LINK.match(name):
            near = difflib.get_close_matches(setting, known, n=1, cutoff=0.7)
            yield f"{name} is not a setting" + (f"; did you mean {PREFIX}{near[0]}?" if near else "")


def _variable(loc: tuple[int | str, ...]) -> str:
    return f"{PREFIX}{str(loc[0]).upper()}" if loc else PREFIX


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")
