"""Run as a script between the supervisor and each service: ties the service's life to the supervisor's.

`python -I -S launch.py SUPERVISOR_PID DEATH_SIGNAL UID GID PROGRAM ARGUMENT...`

Standard library alone, because it starts in 10 ms and runs before every service. The order matters: the
kernel forgets the death signal when a process changes its user, so the user is changed first.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
SAME_USER = -1


def drop_privileges(uid: int, gid: int) -> None:
    """Become the unprivileged user for good, without any of root's groups."""
    if uid == SAME_USER:
        return
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def die_with(supervisor_pid: int, death_signal: int) -> None:
    """Ask Linux to send `death_signal` when the supervisor ends, however it ends."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor_pid:  # it ended before the request was in place
        sys.exit(f"supervisor {supervisor_pid} has ended")


def main(arguments: list[str]) -> None:
    supervisor_pid, death_signal, uid, gid = (int(number) for number in arguments[:4])
    drop_privileges(uid, gid)
    die_with(supervisor_pid, death_signal)
    program = arguments[4:]
    os.execv(program[0], program)  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main(sys.argv[1:])
