"""Run by Alembic for every command; `unmask_server.database.migrate` hands it the connection."""

from __future__ import annotations

from alembic import context
from unmask_server.database.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations run through `unmask-server migrate`, which connects and locks")

context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite alters a table by copying it; its DDL is transactional, whatever Alembic assumes.
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
