"""Settings: what the environment (AURORA_*) says about this installation, checked once, typed from then on.

Only what a user may want to change lives here; each part's own tuning stays with that part. A command line option
beats the environment, which beats the default. Sizes take units ("10GiB").
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator

from aurora_ray.errors import ConfigurationError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

ENVIRONMENT_PREFIX = "AURORA_"
TELEMETRY_NAME = "telemetry"  # below a data directory


def default_data_dir() -> Path:
    """The user's data directory, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "aurora-ray"


class Settings(BaseModel):
    """One value per AURORA_<NAME> variable. Use `load_settings`, which words the errors for people."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    data_dir: Path = Field(default_factory=default_data_dir, description="Everything that must survive lives below it.")
    ray_address: str | None = Field(
        None, description='A running Ray cluster ("auto", "host:port"); else start one here.'
    )
    listen_host: str = Field("127.0.0.1", description="The address that endpoints and engines listen on.")

    metrics_port: int | None = Field(
        None,
        description="Of the metrics, on loopback; 0: none. Default: the first free one from 15400.",
        ge=0,
        le=65535,
    )

    small: bool = Field(
        False,
        description="A fleet of little memory: the storage nodes of an AZ share a process, and end with it together.",
    )

    region: str = Field("us-east-1", description="The region, one of the files in regions/, that this cluster is in.")
    regions_dir: Path | None = Field(None, description="A directory of region files to use instead of the shipped one.")

    telemetry_region: str = Field(
        "", description="The region that exported traces and metrics go to, which policies of residency ask for."
    )

    engine_user: str = Field(
        "aurora-ray", description="The account that engines run as when we are root.", min_length=1
    )
    postgres_bin_dir: Path | None = Field(None, description="The bin directory of a PostgreSQL to use instead of ours.")
    mysql_bin_dir: Path | None = Field(None, description="The directory of a mariadbd to use instead of the system's.")

    group_bytes: ByteSize = Field(ByteSize(10 * GIB), description="A protection group's size.", ge=MIB)
    volume_limit_bytes: ByteSize = Field(
        ByteSize(128 * TIB),
        description="How large a cluster's volume may grow; what does not fit gets 'no space left on device'.",
        ge=MIB,
        le=128 * TIB,
    )
    retention_s: float = Field(300.0, description="How far back a volume can be read, in seconds.", ge=0)
    retention_bytes: ByteSize = Field(ByteSize(256 * MIB), description="How much log is kept for that, at most.", ge=0)
    cache_bytes: ByteSize | None = Field(
        None,
        description="An instance's local page cache. Default: a quarter of its disk's free space, 256 MiB to 64 GiB.",
        ge=16 * MIB,
    )

    hung_after_s: float = Field(
        2.5,
        description="A writer that neither answers nor moves for so long is replaced; one stopped by a signal, sooner.",
        ge=1,
        le=3600,
    )

    answer_within_s: float = Field(0.75, description="How long an engine's sign of life may take.", ge=0.05, le=600)
    give_up_after_s: float = Field(
        30.0,
        description="An engine that only uses the CPU and gives no sign of life for so long is replaced.",
        ge=1,
        le=86400,
    )
    stuck_after_s: float = Field(
        120.0,
        description="An opening in which nothing moves for so long is tried again.",
        ge=5,
        le=86400,
    )

    replace_after_s: float = Field(
        300.0, description="A storage node that is away for so long is replaced by a new one.", ge=1
    )
    promote_in_place: bool = Field(
        True,
        description="A reader goes on as the writer with its engine and sessions where it can; else it is opened anew.",
    )
    replace_empty_after_s: float = Field(10.0, description="The same for one that has lost its data.", ge=1)

    cpus_per_acu: float = Field(0.25, description="CPUs that go with one ACU of serverless capacity.", gt=0, le=64)

    graveyard_s: float = Field(
        24 * 3600.0, description="What is deleted can be restored for so long, in seconds.", ge=0, le=10 * 365 * 86400
    )

    @field_validator("data_dir", "regions_dir", "postgres_bin_dir", "mysql_bin_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # Actors and engines have other working directories than the command that was given the path.
        return None if path is None else Path(os.path.abspath(path.expanduser()))

    def bin_dir(self, engine: str) -> Path | None:
        """The bin directory of that engine to use instead of ours, if one is named."""
        named: Path | None = getattr(self, f"{engine}_bin_dir", None)
        return named

    @property
    def telemetry_dir(self) -> Path:
        """Where each process leaves its spans."""
        return self.data_dir / TELEMETRY_NAME


def load_settings(**overrides: Any) -> Settings:
    """The settings in force; an override of None (an option that was not given) counts as absent.

    Raises ConfigurationError with one sentence that names each variable that is wrong and why.
    """
    # By hand: pydantic-settings takes every command 0.1 s to import.
    variables = {name: f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}
    found = {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings.model_validate(found | given)
    except ValidationError as error:
        complaints = "; ".join(_complaint(detail["loc"], detail["msg"], detail["input"]) for detail in error.errors())
        raise ConfigurationError(f"Bad settings: {complaints}.") from error


def _complaint(location: tuple[int | str, ...], message: str, value: object) -> str:
    name = str(location[0]) if location else "?"
    return f"{ENVIRONMENT_PREFIX}{name.upper()}={value} ({message[:1].lower()}{message[1:]})"
