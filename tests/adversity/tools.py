"""What the tests of the bad day need of the system: `python -m tests.adversity.tools` checks it and installs the rest.

Faults in a network of their own want root, nftables and iproute2, a machine's clock that lies wants libfaketime, and
slow clients want slowhttptest. `make test` needs none of them.
"""

import os
import shutil
import subprocess
import sys

PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "tc": "iproute2",
    "faketime": "faketime",
    "slowhttptest": "slowhttptest",
}
"""Each command with the Debian package that brings it."""


def where(command: str) -> str:
    """Return the path of a command; root's tools are not always on the path of who became root."""
    found = shutil.which(command, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    if found is None:
        raise FileNotFoundError(f"{command} is not on this machine; `make tools` installs it")
    return found


def missing() -> dict[str, str]:
    """Return what is not there, in the shape of PACKAGES."""
    wanted = {}
    for command, package in PACKAGES.items():
        try:
            where(command)
        except FileNotFoundError:
            wanted[command] = package
    return wanted


def main() -> int:
    """Check, install, say so; returns the exit code."""
    wanted = missing()
    if os.geteuid() != 0:
        print(
            "The whole bad day needs root: it makes network namespaces and cuts what runs in them off. "
            "Run `sudo make adversity`; `make test` has the part of it that needs no root.",
            file=sys.stderr,
        )
        return 1
    if not wanted:
        return 0
    names = " ".join(sorted(set(wanted.values())))
    if not shutil.which("apt-get"):
        print(
            f"The whole bad day needs {', '.join(wanted)}, which are not on this machine. Install them first "
            f"(Debian and Ubuntu call the packages {names}; elsewhere they may be called otherwise).",
            file=sys.stderr,
        )
        return 1
    print(f"installing {names}, which the bad day needs …", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names.split()],
    ):
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
            print(f"`{' '.join(command)}` failed; install {names} yourself.", file=sys.stderr)
            return 1
    if wanted := missing():
        print(f"Installed {names}, and still there is no {', '.join(wanted)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
