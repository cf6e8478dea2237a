"""Who a process is to Postgres: a group with its rights (migrations/0004_roles.sql), and logins, its members."""

import asyncpg

GROUPS = {"edge": "drm_edge", "enrich": "drm_enrich", "attach": "drm_attach", "serve": "drm_serve"}


async def ensure_login(connection: asyncpg.Connection, process: str, name: str, password: str) -> None:
    """Let a login exist for a process, with that password and the rights of its group; safe to repeat.

    Raises:
        asyncpg.InsufficientPrivilegeError: the connection's role may not create roles, or did not make the group.
    """
    async with connection.transaction():
        exists = await connection.fetchval("select exists (select from pg_roles where rolname = $1)", name)
        statement = await connection.fetchval(
            "select format('%s role %I login password %L', $1::text, $2::text, $3::text)",
            "alter" if exists else "create", name, password,
        )  # fmt: skip
        await connection.execute(statement)
        await connection.execute(
            await connection.fetchval("select format('grant %I to %I', $1::text, $2::text)", GROUPS[process], name)
        )
