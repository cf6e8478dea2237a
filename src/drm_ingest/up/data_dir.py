"""The folder of one `up`: its lock, the ports and keys it chose once, and what it tells others.

lock                 held while an `up` runs on this folder; its pid
ports.json           of Kafka and Postgres
keys.json            the two keys in plain text (0600); Postgres has their hashes
ready.json           the ready file, always here too; there only while the whole path works (0600)
env                  DRM_* for tools while it runs (0600): `drm-ingest tail` reads it, or `set -a; . .drm/env`
logs/ kafka/ postgres/ pids/
"""

import fcntl
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from drm_ingest.postgres.credentials import new_key
from drm_ingest.up.ports import free_port, is_free

MADE = "DRM_UP_MADE"
"""In the environment that an `up` published: what of it, as a JSON object, was its own choice and not a person's."""


def not_made_by_up(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what an `up` published and a shell then loaded: "mine" is not what an earlier run has chosen.

    A variable that was set to something else since is a person's again.
    """
    try:
        made = json.loads(environment.get(MADE, "{}"))
    except ValueError:
        made = {}
    if not isinstance(made, dict):
        made = {}
    return {name: value for name, value in environment.items() if name != MADE and made.get(name) != value}


class DataDirBusy(Exception):
    """Another `up` runs on this folder; the message names it."""


@dataclass
class DataDir:
    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    def acquire(self) -> None:
        """Make the folder and take it for this process, until the process ends.

        Raises:
            DataDirBusy: somebody else holds it.
            OSError: it cannot be made or written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # People's events are in here. Root's Postgres runs as somebody else, who has to get through.
        self.path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
        lock = (self.path / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise DataDirBusy(
                f"drm-ingest up is running on {self.path} already (pid {holder}). "
                "Stop it, or give this one its own --data-dir and --port."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Give the folder back; the end of the process does the same."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def ports(self, names: Iterable[str], taken: Iterable[int]) -> dict[str, int]:
        """Return a port for each name: the one of last time where it is still free, else a new one, kept from now."""
        file = self.path / "ports.json"
        ports = _read_json(file)
        used = set(taken)
        for name in names:
            if ports.get(name) in used or not (name in ports and is_free(ports[name])):
                ports[name] = free_port(taken=used | set(ports.values()))
            used.add(ports[name])
        write_whole(file, json.dumps(ports))
        return {name: int(ports[name]) for name in names}

    def key(self, name: str) -> str:
        """Return the key of that name, made the first time."""
        file = self.path / "keys.json"
        keys = _read_json(file)
        if name not in keys:
            keys[name], _hash, _prefix = new_key()
            write_whole(file, json.dumps(keys))
        return str(keys[name])

    def log_file(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        return self.path / "pids" / f"{name}.pid"

    @property
    def ready_file(self) -> Path:
        return self.path / "ready.json"

    def publish_environment(self, values: Mapping[str, str]) -> None:
        """Write `env`, for the tools that find a running `up` through its folder."""
        write_whole(self._env_file, "".join(f"{name}={shlex.quote(values[name])}\n" for name in sorted(values)))

    def withdraw_environment(self) -> None:
        self._env_file.unlink(missing_ok=True)

    def published_environment(self) -> dict[str, str]:
        """Return what the `up` that runs on this folder published; nothing when none does."""
        if not (self._env_file.exists() and self._is_held()):
            return {}
        lines = self._env_file.read_text(encoding="utf-8").splitlines()
        return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}

    def _is_held(self) -> bool:
        """Whether some `up` lives: one that was killed leaves its files, not its lock."""
        with (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def _env_file(self) -> Path:
        return self.path / "env"


def write_whole(path: Path, text: str) -> None:
    """Put the file there at once, by rename, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
