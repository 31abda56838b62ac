"""The settings in groups, for whoever reads through them."""

from __future__ import annotations

_GROUPS = (
    ("Database", ("database",)),
    ("Serving", ("listen", "admin_listen", "max_message", "grace")),
    ("Connections", ("keepalive", "max_connection", "max_concurrent")),
    ("Limits of a client", ("client", "quota")),
    ("Limits of a call", ("deadline", "max_rollouts", "max_tokens")),
    ("Access", ("auth", "insecure", "tls", "oidc", "model_roots", "endpoint_hosts")),
    ("Embedded models", ("device", "dtype", "threads", "max_batch", "max_engines")),
    ("SGLang", ("sglang", "max_noise")),
    ("Growths and answers", ("lease", "answer")),
    ("Being watched", ("log", "access_log", "metrics", "trace", "otel", "otlp")),
)
OTHER = "Other"


def group_of(name: str) -> str:
    """The heading under which a setting is listed."""
    for heading, prefixes in _GROUPS:
        if name.startswith(prefixes):
            return heading
    return OTHER


def in_groups(names: list[str]) -> list[tuple[str, list[str]]]:
    """Settings by heading, in the order of the headings."""
    headings = [heading for heading, _ in _GROUPS] + [OTHER]
    found = [(h, [name for name in names if group_of(name) == h]) for h in headings]
    return [(heading, members) for heading, members in found if members]
