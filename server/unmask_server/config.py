"""Settings of a server; `configuration.loading` reads them from where they stand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from unmask_server.access.settings import AccessSettings
from unmask_server.database.limits import Limits


class Settings(AccessSettings):
    """What a server can be told. Each field is a flag, a variable and a key of the file."""

    model_config = SettingsConfigDict(env_prefix="UNMASK_", extra="ignore")

    database: str = Field(
        default="sqlite:///.unmask/unmask.db",
        description="Where everything is kept: sqlite:///PATH or postgresql://…",
    )
    database_pool: int = Field(
        default=16, ge=1, description="Connections kept open; as many again under pressure."
    )
    database_connection_seconds: float = Field(
        default=30.0, ge=0, description="What a connection to the database may take; 0: any time."
    )
    database_statement_seconds: float = Field(
        default=120.0, ge=0, description="What one statement may take on PostgreSQL; 0: any time."
    )
    database_lock_seconds: float = Field(
        default=30.0, ge=0, description="How long writers wait for each other; 0: any time."
    )
    database_idle_seconds: float = Field(
        default=300.0,
        ge=0,
        description="After which PostgreSQL ends the transaction of a server that hangs; 0: never.",
    )
    database_patience_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long work waits for a database that does not answer, or is busy.",
    )
    listen: Annotated[list[str], NoDecode] = Field(
        default=["localhost:50051"],
        description="Addresses to serve at: HOST:PORT or unix:PATH; may be given several times "
        "(in the environment: with commas between).",
    )
    admin_listen: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Addresses for operators alone, in the clear: health, reflection and channelz, "
        "which tells who is connected. Written like those of `listen`.",
    )
    device: str = Field(default="cpu", description="Where embedded models run: cpu, cuda, cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Of embedded models: float32, bfloat16 or float16."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of an embedded model; default: all cores."
    )
    max_batch: int = Field(
        default=256, ge=1, description="Rollouts that an embedded model runs at once."
    )
    max_engines: int = Field(
        default=8, ge=1, description="Embedded models held in memory; the least used go first."
    )
    sglang_launch: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="A model directory to run an SGLang server for, and arguments for it "
        '("path/to/model --tp 2"); may be given several times (in the environment: with '
        "semicolons between).",
    )
    sglang_command: str = Field(
        default="",
        description="What starts SGLang, where it lives in another environment "
        '("path/to/python -m sglang.launch_server").',
    )
    sglang_in_flight: int = Field(
        default=1024, ge=1, description="Rollouts sent to a model's SGLang servers and unanswered."
    )
    sglang_timeout_seconds: float = Field(
        default=1800.0, gt=0, description="What one request to SGLang may take, queue included."
    )
    sglang_patience_seconds: float = Field(
        default=120.0,
        ge=0,
        description="How long work waits for SGLang when none of a model's servers answers.",
    )
    max_noise: float = Field(
        default=0.1,
        ge=0,
        description="Nats by which two scorings by a teacher's SGLang servers may differ.",
    )
    max_rollouts: int = Field(
        default=10_000_000, ge=1, description="The largest budget of one growth, in rollouts."
    )
    max_tokens: int = Field(
        default=10_000_000_000, ge=1, description="The largest budget of one growth, in tokens."
    )
    lease_seconds: float = Field(
        default=30.0,
        ge=1,
        description="After so long without a sign of life from a server its growths are taken "
        "over; the same for all servers of a database.",
    )
    quota_rollouts: int | None = Field(
        default=None, ge=1, description="Rollouts that one client may have sampled in 24 hours."
    )
    quota_tokens: int | None = Field(
        default=None, ge=1, description="Tokens that one client may have sampled in 24 hours."
    )
    answer_cache_mib: int = Field(
        default=64, ge=0, description="Memory for answers that are asked for again."
    )
    max_message_mib: int = Field(default=32, ge=1, description="The largest message, in MiB.")
    grace_seconds: float = Field(
        default=5.0, ge=0, description="What running calls get to finish when the server stops."
    )
    grace_notice_seconds: float = Field(
        default=0.0,
        ge=0,
        description="When it is told to stop, a server says NOT_SERVING and goes on for so long: "
        "for balancers that only look now and then.",
    )
    keepalive_seconds: float = Field(
        default=60.0,
        ge=1,
        description="A silent connection is pinged after so long, ...",
    )
    keepalive_timeout_seconds: float = Field(
        default=20.0, ge=1, description="... and closed when no answer comes within this."
    )
    keepalive_min_ping_seconds: float = Field(
        default=10.0,
        ge=0,
        description="Clients that ping more often, several times, are disconnected.",
    )
    max_connection_idle_seconds: float = Field(
        default=0.0, ge=0, description="Connections without calls are closed after this; 0: never."
    )
    max_connection_age_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Connections are asked to go after this, so that clients spread over new "
        "servers; 0: never.",
    )
    max_connection_age_grace_seconds: float = Field(
        default=600.0, ge=0, description="What calls on such a connection get to finish."
    )
    max_concurrent_streams: int = Field(
        default=1000,
        ge=1,
        description="Calls running on one connection; more wait at the client.",
    )
    max_concurrent_calls: int = Field(
        default=4000,
        ge=1,
        description="Calls of all clients at once, from before their messages are read, health "
        "checks among them; more are refused.",
    )
    client_calls: int = Field(
        default=512, ge=0, description="Calls that one client may have running; 0: any number."
    )
    client_streams: int = Field(
        default=256, ge=0, description="Streams that one client may have open; 0: any number."
    )
    client_rate: float = Field(
        default=0.0,
        ge=0,
        description="Calls a second that one client may make in the long run; 0: any number. A "
        "client is who was authenticated, else an address.",
    )
    client_burst: int = Field(
        default=0, ge=0, description="Calls at once after a rest; 0: those of two seconds."
    )
    client_failures: float = Field(
        default=10.0,
        ge=0,
        description="Credentials a second from one address that may turn out not to hold, in the "
        "long run; more are refused without a look, but for those that held before. 0: any number.",
    )
    deadline_seconds: float = Field(
        default=120.0,
        ge=0,
        description="What a call may take that needs the database only; 0: any time.",
    )
    deadline_work_seconds: float = Field(
        default=21_600.0,
        ge=0,
        description="What a call may take that may have models at work; 0: any time.",
    )
    deadline_stream_seconds: float = Field(
        default=86_400.0, ge=0, description="How long a stream may go on; 0: for ever."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Of logs: console or json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged: debug, info, warning or error."
    )
    access_log: Literal["all", "computed", "failed", "off"] = Field(
        default="computed",
        description="Which calls are logged: all, computed (all but answers from memory), failed "
        "or off.",
    )
    metrics_listen: str = Field(
        default="",
        description="Where metrics are served for Prometheus, by HTTP: HOST:PORT; empty: nowhere.",
    )

    @property
    def database_limits(self) -> Limits:
        """Of the connections to the database."""
        return Limits(
            pool_size=self.database_pool,
            connection=self.database_connection_seconds,
            statement=self.database_statement_seconds,
            lock=self.database_lock_seconds,
            idle=self.database_idle_seconds,
            patience=self.database_patience_seconds,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("listen", "admin_listen", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("sglang_launch", mode="before")
    @classmethod
    def _split_launches(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(";") if part.strip()]
