"""Network namespaces: each process in one of its own, all on one switch, cut off and slowed down packet by packet.

Needs root, iproute2 and nftables. The machine's own network gets one interface more, and loses it again.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence

from tests.adversity.relay import Fault
from tests.adversity.tools import where

OWN_HOST = 1
FIRST_HOST = 11


class Network:
    """The namespaces and who is in them; addresses are those for benchmarks (RFC 2544), which nobody routes."""

    def __init__(self, processes: Sequence[str]) -> None:
        self._tag = f"drm{os.getpid() % 100_000}"
        self._hub = f"{self._tag}-hub"
        self._subnet = f"198.18.{os.getpid() % 250}"
        self.network = f"{self._subnet}.0/24"
        self.address = f"{self._subnet}.{OWN_HOST}"  # of the machine, as those in the namespaces see it
        self.addresses = {name: f"{self._subnet}.{FIRST_HOST + number}" for number, name in enumerate(processes)}

    def prefix(self, process: str) -> list[str]:
        """Return what runs a command there."""
        return [where("ip"), "netns", "exec", self._namespace(process)]

    def hurt(self, process: str, port: int, fault: Fault) -> None:
        """Hurt what goes between a process and a port of the machine; a NARROW link is narrow for all."""
        if fault is Fault.NARROW:
            for end in self._both_ends(process):
                _run(*end, "root", "tbf", "rate", "1mbit", "burst", "16kb", "latency", "400ms")
            return
        to, from_ = f"ip daddr {self.address} tcp dport {port}", f"ip saddr {self.address} tcp sport {port}"
        lost = "numgen random mod 100 < 5 drop"
        rules = {
            Fault.DROPPED: {"leaving": f"{to} drop", "coming": f"{from_} drop"},
            Fault.DEAF: {"leaving": f"{to} drop"},
            Fault.MUTE: {"coming": f"{from_} drop"},
            Fault.RESET: {"leaving": f"{to} reject with tcp reset"},
            Fault.LOSSY: {"leaving": f"{to} {lost}", "coming": f"{from_} {lost}"},
        }[fault]
        for chain, rule in rules.items():
            _run(*self.prefix(process), where("nft"), f"add rule inet bad {chain} {rule}")

    def heal(self) -> None:
        """Take all of it back."""
        for process in self.addresses:
            _run(*self.prefix(process), where("nft"), "flush table inet bad")
            for end in self._both_ends(process, "del"):
                with contextlib.suppress(subprocess.CalledProcessError):  # it was not narrow
                    _run(*end, "root")

    @contextlib.contextmanager
    def up(self) -> Iterator["Network"]:
        """Make all of it; whatever happens, it is gone afterwards."""
        try:
            self._make()
            yield self
        finally:
            # What is in a namespace goes with it, a little later; our own end is gone at once.
            subprocess.run([where("ip"), "link", "del", self._tag], check=False, capture_output=True)
            for name in (*map(self._namespace, self.addresses), self._hub):
                subprocess.run([where("ip"), "netns", "del", name], check=False, capture_output=True)

    def _make(self) -> None:
        hub = ["ip", "-n", self._hub]
        _run("ip", "netns", "add", self._hub)
        _run(*hub, "link", "add", "name", "switch", "type", "bridge")
        _run(*hub, "link", "set", "switch", "up")
        _run("ip", "link", "add", "name", self._tag, "type", "veth", "peer", "name", "machine", "netns", self._hub)
        _run("ip", "address", "add", f"{self.address}/24", "dev", self._tag)
        _run("ip", "link", "set", self._tag, "up")
        _run(*hub, "link", "set", "machine", "master", "switch", "up")
        for process, address in self.addresses.items():
            own = self._namespace(process)
            _run("ip", "netns", "add", own)
            _run(*hub, "link", "add", "name", process, "type", "veth", "peer", "name", "wire", "netns", own)
            _run(*hub, "link", "set", process, "master", "switch", "up")
            _run("ip", "-n", own, "address", "add", f"{address}/24", "dev", "wire")
            _run("ip", "-n", own, "link", "set", "wire", "up")
            _run("ip", "-n", own, "link", "set", "lo", "up")
            _run(*self.prefix(process), where("nft"), "add table inet bad")
            for chain, hook in (("leaving", "output"), ("coming", "input")):
                _run(
                    *self.prefix(process), where("nft"),
                    f"add chain inet bad {chain} {{ type filter hook {hook} priority 0; policy accept; }}",
                )  # fmt: skip

    def _namespace(self, process: str) -> str:
        return f"{self._tag}-{process}"

    def _both_ends(self, process: str, what: str = "add") -> list[list[str]]:
        return [
            ["tc", "-n", self._namespace(process), "qdisc", what, "dev", "wire"],
            ["tc", "-n", self._hub, "qdisc", what, "dev", process],
        ]


@contextlib.contextmanager
def swallowed(*ports: int) -> Iterator[None]:
    """Let no packet through to or from these ports of 127.0.0.1: who is killed behind them is gone without a word.

    That is what the loss of a machine looks like from others; of a process that dies the kernel says goodbye.
    """
    table, numbers = f"inet drm{os.getpid()}", ", ".join(map(str, ports))
    try:
        for command in (
            f"add table {table}",
            f"add chain {table} leaving {{ type filter hook output priority 0; policy accept; }}",
            f"add rule {table} leaving ip daddr 127.0.0.1 tcp dport {{ {numbers} }} drop",
            f"add rule {table} leaving ip saddr 127.0.0.1 tcp sport {{ {numbers} }} drop",
        ):
            _run("nft", command)
        yield
    finally:
        _run("nft", f"delete table {table}")


def _run(*command: str) -> None:
    done = subprocess.run([where(command[0]), *command[1:]], check=False, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
