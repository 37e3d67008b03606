"""
The settings: environment variables under `ML_SERVICE_` and a `.env` file, read once, checked together.

Two names are left out on purpose. `ML_SERVICE_HOST` and `ML_SERVICE_PORT` are command line options only:
Kubernetes sets `ML_SERVICE_PORT=tcp://...` in every pod beside a Service called `ml-service`.
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
    "unknown_variables",
]

PREFIX = "ML_SERVICE_"

BASE_URL = "ML_API_BASE_URL"
"""Set by `ml-api serve`: where it listens, for the log."""

RUNTIME_DIRECTORY = "ML_API_RUNTIME_DIRECTORY"
"""Set by `ml-api serve` for its workers: a private directory with a socket for each of them."""

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""
Set by `ml-api serve` for several workers: where prometheus-client keeps their numbers. It reads the variable when it
is imported.
"""

# What Kubernetes injects beside a Service called "ml-service": none of our business, and no typing mistake.
_SERVICE_LINK = re.compile(r"ML_SERVICE_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)\Z")


class SettingsError(Unusable):
    """The settings cannot be used; the message lists every mistake, one a line, and no secret."""


def _state_directory() -> Path:
    """
    $XDG_STATE_HOME or its default: where a program keeps what should survive a restart (XDG base
    directories, 0.8).
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


_Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """
    Everything an operator can choose. Durations are in seconds, sizes in bytes.

    Attributes:
        model_path: A LightGBM text model with its manifest beside it; None serves the model in the package.
        model_version: What answers call the model of the start; None takes the manifest's.
        models_dir: More models for the Open Inference Protocol: every `*.txt` with its manifest.
        only_models: A model file, or a folder of them: the Open Inference Protocol serves these, and nothing trades.
        rule_fallback: Whether a missing model file is answered by fixed rules instead of refusing to start.
        api_key: The single, unnamed key. Its records carry no tenant.
        api_keys_file: Lines `name = key`, re-read when the file changes; the name is the tenant.
        admin_key: The key of `POST /admin/model`; None leaves that route out.
        allowed_origin: Origins for CORS, separated by commas; `*` for any; empty, as by default, for none.
        admin_model_dir: Where that route takes models from; None takes the directory of
            *only_models* or *model_path*, or refuses.
        admin_timeout: How long loading such a model may take.
        max_model_bytes: The largest file of such a model.
        redis_url: Instead of host, port, database and password: TLS, Sentinel, Cluster.
        redis_ttl_seconds: How long a recorded answer lives, in whichever store.
        store_path: The embedded SQLite store, used while Redis is not enabled.
        store_deadline: Longest time one store call may take.
        on_store_error: `refuse` answers 503 while the store is down; `bypass` decides without protection.
        fingerprint: `decision`: one key belongs to one agent and candle minute. `body`: to one JSON body.
        wait: How long a duplicate waits for the first request before it is told 409.
        lease: How long a claim outlives a process that died. Below *wait*: a duplicate that waits takes over.
        cap_orders: Whether orders are cut to the cash or position that the portfolio has.
        explain_top: How many of the model's own contributions answers list per asset; 0 leaves the member out.
        max_header_fields: How many headers, and how many trailers, a request may have.
        max_connections: Open connections in one worker; the idlest is closed for a new one.
        keep_alive_timeout: How long a connection stays open between two requests.
        write_timeout: How long a client may not read its answer before the connection is cut.
        rate_limit: Requests a minute for each API key's name in one worker; 0 sets no limit.
        quota_bytes: Bytes that the recorded answers of one API key's name may occupy, counted in each worker; 0 sets
            no limit.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,  # a variable left blank in a template is not set
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
    allowed_origin: str = ""
    admin_model_dir: DirectoryPath | None = None
    admin_timeout: _Seconds = 60.0
    max_model_bytes: PositiveInt = 67_108_864

    redis_enabled: bool = False
    redis_host: str = Field(default="localhost", min_length=1)
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
        # A secret from a file ends in a line feed, which no header can carry; and `ML_SERVICE_API_KEY=` in a template
        # is no key: an empty one would let everybody in.
        value = SecretStr(value.get_secret_value().strip()) if value is not None else None
        if value is not None and not value.get_secret_value():
            value = None
        # A keys file that failed its own check is absent from `data`: one mistake, reported once.
        if value is None and info.data.get("api_keys_file", ...) is None:
            raise ValueError(
                f"an API key is required: set {PREFIX}API_KEY (openssl rand -hex 32 makes one) "
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
                f"there is no such file; {PREFIX}RULE_FALLBACK=true decides by fixed rules without one"
            )
        return value

    @field_validator("admin_key", mode="after")
    @classmethod
    def _not_every_callers(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        key = value.get_secret_value().strip() if value is not None else ""
        single, file = info.data.get("api_key"), info.data.get("api_keys_file")
        callers = ApiKeys(single=single.get_secret_value() if single else None, file=file)
        if key and callers.name_of(key.encode()) is not None:
            raise ValueError("should not be the key of a caller, who could then replace the model")
        if key and (weakness := weakness_of(key)) is not None:
            raise ValueError(weakness)
        return SecretStr(key) if key else None

    @property
    def redis(self) -> str | None:
        """The URL of the Redis to use, password included; None where the embedded store serves."""
        if not self.redis_enabled:
            return None
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        secret = f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else quote(self.redis_host, safe="")
        return f"redis://{secret}{host}:{self.redis_port}/{self.redis_db}"

    @property
    def unused(self) -> str | None:
        """A setting that says where Redis is, while Redis is not enabled; None where all is used."""
        if self.redis_enabled:
            return None
        for name in ("redis_url", "redis_host", "redis_password"):
            if getattr(self, name) != type(self).model_fields[name].default:
                return f"{PREFIX}{name.upper()}"
        return None

    @property
    def origins(self) -> tuple[str, ...]:
        """The allowed CORS origins; `("*",)` for any."""
        return tuple(
            origin for part in self.allowed_origin.split(",") if (origin := part.strip().rstrip("/"))
        )


def load_settings(**given: object) -> Settings:
    """
    Read the environment and `.env`.

    Args:
        given: Settings that win over both.
    Raises:
        SettingsError: With every mistake, named as the variable that holds it, and never its value.
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


def unknown_variables() -> Iterator[str]:
    """A sentence for each `ML_SERVICE_` variable, or line of `.env`, that means nothing here: most are misspelt."""
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
