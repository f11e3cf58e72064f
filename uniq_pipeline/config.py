"""The one settings object: from `UNIQ_*` environment variables, then a TOML file, then defaults.

The TOML file is the one named by `UNIQ_CONFIG`, else `uniq-pipeline.toml` in the current directory when
there is one; a secret may be in a file of its own (`setting_sources`). A wrong value, and values that do not go
together, fail at start with their names and what is allowed.
"""

from __future__ import annotations

import os
import re
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from uniq_pipeline.connection import ConnectionSettings
from uniq_pipeline.errors import SettingError
from uniq_pipeline.setting_sources import (
    ENV_PREFIX,
    SecretFiles,
    TomlFile,
    config_file,
    is_secret,
    known_variables,
    secret_names,
    variable_of,
)

# What may be kept for a number of days, and not for ever (setting retention).
SETS = ("hour_sets", "day_sets", "week_sets", "month_sets", "year_sets")
KEPT = ("frames", "held", "quarantine", "minute_counts", "hour_counts", *SETS)
LONGEST_KEPT_D = 36_500

MOST_DIMENSIONS = 4
LONGEST_DIMENSION = 64

HIDDEN = "**********"

TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")

WEB_ADDRESS = re.compile(r"https?://[^\s/?#]+\S*")


class TsUnit(StrEnum):
    """Unit of the root `ts` of a frame."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"

    @property
    def per_second(self) -> int:
        return {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[self.value]


class VeryLate(StrEnum):
    """What happens to a frame older than the allowed lateness."""

    HOLD = "hold"
    CORRECT = "correct"


class AdmitHeld(StrEnum):
    """Which held frames a sensor lets count without being asked."""

    OFF = "off"
    VERY_LATE = "very_late"


class Settings(ConnectionSettings):
    """All settings. Each is `UNIQ_<NAME>` in the environment or `<name>` in the TOML file."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    # Where things are
    data_dir: Path = Field(Path("data"), description="Folder of the lake, the catalog and the default ledger.")
    ledger_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL of the ledger; default: SQLite in data_dir/ledger.db."
    )

    # Topics
    topic: str = Field("uniq.frames", description="Topic the JSON frames are read from.")
    results_topic: str | None = Field(
        "uniq.counts", description="Compacted topic the counts go to; empty: results are not published."
    )
    refined_topic: str | None = Field(
        None, description="Topic that accepted frames go to in Protocol Buffers; default: none, they are not sent."
    )
    consumer_group: str = Field(
        "uniq-pipeline",
        min_length=1,
        max_length=249,
        description="Group under which offsets are committed for lag tools; never read back.",
    )

    # Frames and event time
    ts_unit: TsUnit = Field(TsUnit.SECONDS, description="Unit of the root ts: s, ms, us or ns. Never guessed.")
    expected_delay_s: int = Field(
        5,
        ge=0,
        le=3600,
        description="Seconds by which ordinary frames arrive out of order; the event watermark trails by it.",
    )
    allowed_lateness_s: int = Field(
        120,
        ge=0,
        le=86_400,
        description="Seconds behind the event watermark within which a frame is still counted (late).",
    )
    max_future_skew_s: int = Field(
        300,
        ge=0,
        le=86_400,
        description="Seconds ahead of the event watermark beyond which a frame is held as future.",
    )
    very_late: VeryLate = Field(
        VeryLate.HOLD,
        description="Frames older than allowed_lateness_s: hold them aside, or correct at once.",
    )

    # Dimensions
    dimensions: str = Field(
        "", description="Further root keys of a frame to count users by, comma-separated, 4 at most: country,platform."
    )
    dimension_values: int = Field(
        50,
        ge=1,
        le=1000,
        description="Most values of a dimension with counts of their own in a window; the rest is one, (other).",
    )

    # Windows and sketches
    timezone: str = Field("UTC", description="IANA time zone of day, week, month and year windows.")
    lg_k: int = Field(
        12,
        ge=4,
        le=21,
        description="HLL precision: 2^lg_k registers, relative standard error 1.04/sqrt(2^lg_k).",
    )
    history_start: date = Field(
        date(2025, 1, 1),
        ge=date(1970, 1, 1),
        le=date(2100, 1, 1),
        description="First day of the partitions shown in Dagster; older windows are counted all the same.",
    )

    # Work
    batch_frames: int = Field(
        500_000, ge=100, le=20_000_000, description="Most records drained in one commit; bounds the memory."
    )
    settle_s: float = Field(
        5.0,
        ge=0,
        le=30,
        description="Seconds after a minute's end that a scheduled tick waits before it drains.",
    )
    duckdb_threads: int = Field(2, ge=1, le=256, description="Threads of DuckDB.")
    duckdb_memory_mb: int = Field(1024, ge=128, le=1_048_576, description="Memory limit of DuckDB in MiB.")
    gc_grace_h: float = Field(
        24.0, ge=0, le=8760, description="Hours an unreferenced file is kept, for shells that still read it."
    )
    retention: str = Field(
        "",
        description="What is kept how many days, what is not named for ever: frames=90,hour_sets=35. Of "
        f"{', '.join(KEPT)}.",
    )

    # Asset checks
    check_freshness_s: int = Field(
        180, ge=10, le=604_800, description="Check freshness: the newest complete minute ended at most this long ago."
    )
    check_standard_errors: float = Field(
        5.0,
        ge=1,
        le=100,
        description="Check sketch_against_exact: estimate and exact count differ by at most so many standard errors.",
    )
    check_late_ratio: float = Field(
        0.05, ge=0, le=1, description="Check late_ratio: at most this share of the frames counted came late."
    )
    check_rejected_ratio: float = Field(
        0.01, ge=0, le=1, description="Check rejected_ratio: at most this share of the records read was quarantined."
    )
    check_held_ratio: float = Field(
        0.01, ge=0, le=1, description="Check held_ratio: at most this share of the records read was held aside."
    )
    check_span_min: int = Field(
        60, ge=1, le=1440, description="Minutes of batches that the checks of ratios look at, up to now."
    )
    check_min_records: int = Field(
        1000, ge=1, le=1_000_000_000, description="Records below which a ratio says nothing, and its check passes."
    )

    # Dagster
    dagster_keep_days: float = Field(
        2.0,
        ge=0.04,
        le=3650,
        description="Days Dagster keeps runs that succeeded; then only what its asset pages need.",
    )
    dagster_keep_failed_days: float = Field(
        14.0, ge=0.04, le=3650, description="Days Dagster keeps runs that failed or were cancelled, the newest 2,000."
    )
    dagster_url: str | None = Field(
        None,
        pattern="^https?://[^ ]+$",
        description="Address at which people open the Dagster UI, for links in messages.",
    )
    source_url: str | None = Field(
        None,
        pattern="^https?://[^ ]+$",
        description="Address at which the repository's files are shown, for links from assets: https://host/blob/main.",
    )
    dirty_after_s: int = Field(
        600,
        ge=60,
        le=604_800,
        description="Seconds after which a sensor asks for runs of windows that still wait to be computed.",
    )
    admit_held: AdmitHeld = Field(
        AdmitHeld.OFF, description="Held frames that a sensor admits by itself, hour by hour: off or very_late."
    )
    admit_held_frames: int = Field(
        1, ge=1, le=1_000_000_000, description="With admit_held: frames held for an hour below which it is left alone."
    )
    failure_webhook_url: SecretStr | None = Field(
        None, description="http(s) address to which a failed run is posted as JSON; default: nowhere. Never shown."
    )
    failure_webhook_every_min: float = Field(
        60.0, ge=0, le=10_080, description="Minutes between two posts about the same job failing with the same error."
    )

    @field_validator("topic", "results_topic", "refined_topic")
    @classmethod
    def _topic_name(cls, value: str | None) -> str | None:
        # Topic names become folder names: Kafka's own alphabet, and neither "." nor "..".
        if value == "":
            return None
        if value is not None and not TOPIC_NAME.fullmatch(value):
            raise ValueError("1 to 249 characters of A-Z a-z 0-9 . _ - and not '.' or '..'")
        return value

    @field_validator("topic")
    @classmethod
    def _topic_required(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("a topic name is required")
        return value

    @field_validator("refined_topic")
    @classmethod
    def _topic_of_its_own(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value in (info.data.get("topic"), info.data.get("results_topic")):
            raise ValueError("a topic of its own, neither UNIQ_TOPIC nor UNIQ_RESULTS_TOPIC")
        return value

    @field_validator("failure_webhook_url")
    @classmethod
    def _web_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or value.get_secret_value() == "":
            return None
        if not WEB_ADDRESS.fullmatch(value.get_secret_value()):
            raise ValueError("an address that starts with http:// or https://, without spaces")
        return value

    @field_validator("dimensions")
    @classmethod
    def _dimension_names(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")] if value.strip() else []
        if len(names) > MOST_DIMENSIONS:
            raise ValueError(f"at most {MOST_DIMENSIONS} root keys")
        for name in names:
            if not 1 <= len(name) <= LONGEST_DIMENSION:
                raise ValueError(f"root keys of 1 to {LONGEST_DIMENSION} characters, with commas between them")
            if name in ("ts", "uid"):
                raise ValueError(f"{name} is no dimension: every frame has its own")
            if not _is_text(name):
                raise ValueError("root keys in UTF-8")
        if len(set(names)) < len(names):
            raise ValueError("each root key once")
        return ",".join(names)

    @field_validator("retention")
    @classmethod
    def _kept(cls, value: str) -> str:
        kept: dict[str, int] = {}
        for part in value.split(",") if value.strip() else []:
            what, _, days = (text.strip() for text in part.partition("="))
            if what not in KEPT or what in kept:
                raise ValueError(f"names, each once, of {', '.join(KEPT)}; such as frames=90,hour_sets=35")
            if not (days.isascii() and days.isdigit() and 1 <= int(days) <= LONGEST_KEPT_D):
                raise ValueError(f"{what}: whole days, 1 to {LONGEST_KEPT_D}; such as {what}=90")
            kept[what] = int(days)
        return ",".join(f"{what}={days}" for what, days in kept.items())

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except Exception:  # ZoneInfo raises ValueError, OSError or its own error, by the shape of the name
            raise ValueError("an IANA time zone name such as Europe/Zurich") from None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls), TomlFile(settings_cls)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def dimension_keys(self) -> tuple[str, ...]:
        """The root keys of `dimensions` in order of name, which is the order in which they are stored."""
        return tuple(sorted(self.dimensions.split(","))) if self.dimensions else ()

    @property
    def kept_days(self) -> dict[str, int]:
        """Days that files are kept, by what they are (KEPT); what is not in it is kept for ever."""
        parts = (part.split("=") for part in self.retention.split(",") if part)
        return {what: int(days) for what, days in parts}

    @property
    def effective_ledger_url(self) -> str:
        if self.ledger_url is not None:
            return self.ledger_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'ledger.db'}"

    @property
    def catalog_path(self) -> Path:
        return self.data_dir.absolute() / "uniq.duckdb"

    def without_secrets(self, text: str) -> str:
        """The text with stars in place of every secret: what others say is not shown before that."""
        values = [getattr(self, name) for name in secret_names(Settings)]
        secrets = {part for value in values if value is not None for part in _secret_parts(value.get_secret_value())}
        for secret in sorted(secrets - {""}, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text


def _secret_parts(secret: str) -> set[str]:
    """The secret and, where it is a URL, the password in it: as it is written there, and as it is meant."""
    password = secret.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return {secret, password, unquote(password)}


def _is_text(name: str) -> bool:
    """An environment variable that is not UTF-8 arrives with surrogates in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_settings(**overrides: Any) -> Settings:
    """Settings from environment, file and defaults; `overrides` win (they come from command line options).

    Raises SettingError that names each wrong setting, what was found and what is allowed.
    """
    known = known_variables(Settings)
    unknown = [name for name in os.environ if name.startswith(ENV_PREFIX) and name.upper() not in known]
    if unknown:
        raise SettingError(f"unknown setting {', '.join(sorted(unknown))}; `uniq-pipeline config` lists the known ones")
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    allowed = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return allowed  # of several settings together: it names them, and its input is all of them, secrets too
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name} in {config_file()}; `uniq-pipeline config` lists the known ones"
    field = Settings.model_fields.get(name)
    found = HIDDEN if field is not None and is_secret(field) else repr(problem["input"])
    about = f" ({field.description})" if field is not None else ""
    return f"setting {variable_of(name)}: found {found}; {allowed}{about}"


def describe_settings(settings: Settings) -> list[dict[str, str]]:
    """Name, value (secrets hidden), default and description of every setting, for people and programs."""
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append(
            {
                "setting": variable_of(name),
                "value": _shown(getattr(settings, name)),
                "default": _shown(field.default),
                "description": field.description or "",
            }
        )
    return rows


def _shown(value: Any) -> str:
    return "" if value is None else str(value)  # str() of a SecretStr is stars
