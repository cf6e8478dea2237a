"""Become another program, after binding its life to ours and giving up rights it should not have.

Run as a script by `up.child`: `python launch.py PARENT SIGNAL USER CAPABILITY PROGRAM [ARGUMENT …]`.
It ends in exec, so it costs 20 ms at start and no process; a `preexec_fn` would fork a process full of threads.

PARENT      pid that must still be our parent; when it dies, however it dies, the kernel sends us SIGNAL (Linux only)
USER        uid:gid to become, or "-"
CAPABILITY  number of the one capability to keep through that change (capabilities(7)), or "-"
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2  # linux/prctl.h
SECBIT_NO_SETUID_FIXUP = 4  # linux/securebits.h
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h: two 32-bit words a set


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {arguments})")


def _keep_only(capability: int) -> None:
    bit = 1 << capability
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable
    if ctypes.CDLL(None, use_errno=True).capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), f"capset({capability})")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)  # what survives the exec


def main(parent: str, signal: str, user: str, capability: str, *program: str) -> None:
    if user != "-":
        uid, gid = (int(part) for part in user.split(":"))
        if capability != "-":
            # Capabilities survive the setuid, and count in access(2) too, which Postgres asks about its programs.
            _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if capability != "-":
            _keep_only(int(capability))
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, int(signal))  # after setuid, which would clear it
        if os.getppid() != int(parent):
            sys.exit("the process that started this one is gone")
    os.execv(program[0], program)  # noqa: S606 - a program we chose, from arguments we made


if __name__ == "__main__":
    main(*sys.argv[1:])
