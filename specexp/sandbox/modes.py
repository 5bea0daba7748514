"""The ways to confine a process, best first, and what each of them does not protect.

bubblewrap confines what a process sees: no network, its own pids, a read-only system without home folders, a scratch
folder of a fixed size. It bounds neither memory nor processes; resource limits do, and those on processes do not bind
root. So root's processes give up their user id, and where they cannot (the interpreter lies in a folder that only root
may open), a cgroup counts them.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from specexp.sandbox.job import MIB, Limits

FIRST_UID, NUM_UIDS = 60706, 478  # ids that neither distributions nor systemd give to anybody
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
SCRATCH = "/scratch"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
COUNTED_IN_NAMESPACES = (5, 14)  # the first Linux that counts processes for each user namespace
MARK = "SPECEXP_SANDBOX"  # a variable in the environment of every process
OWN = 3  # processes of the sandbox itself


@dataclass(frozen=True, slots=True)
class Confinement:
    """One way to run a process. `bubblewrap` is the path of bwrap, or "" for a subprocess.

    `uid` is the user id that a process of root gives up its own for; with `user_namespace`, before bubblewrap starts.
    `cgroup` is the folder of a pids controller that new cgroups are made in.
    """

    bubblewrap: str = ""
    uid: int | None = None
    user_namespace: bool = False
    cgroup: str = ""

    @property
    def name(self) -> str:
        return "bubblewrap" if self.bubblewrap else "subprocess"

    @property
    def processes(self) -> str:
        """What makes the limit on processes bind, or "" if nothing does."""
        if self.uid is not None:
            return f"the user id is given up ({os.getuid()} for {self.uid})"
        if self.cgroup:
            return "a cgroup counts them"
        return "" if os.getuid() == 0 else "the user is not root"


def modes() -> list[Confinement]:
    """Return the modes that may work here, best first."""
    path = shutil.which("bwrap") or ""
    if os.getuid() != 0:
        return [*([Confinement(path, user_namespace=True), Confinement(path)] if path else []), Confinement()]
    uid = FIRST_UID + os.getpid() % NUM_UIDS
    wrapped = [Confinement(path, uid), Confinement(path, uid, user_namespace=True)] if path else []
    folder = pids_folder(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return [*wrapped, Confinement(uid=uid), *([Confinement(cgroup=folder)] if folder else []), Confinement()]


def pids_folder(own: Path, root: Path) -> str:
    """Return this process's folder of the pids controller, of version 1 or 2, if a cgroup can be made in it; else "".

    `own` lists the cgroups of this process, `root` is where they are mounted.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return ""
    for number, names, path in lines:
        folder = root / path.lstrip("/") if number == "0" else root / "pids" / path.lstrip("/")
        if number == "0":
            with_pids = folder / "cgroup.subtree_control"
            usable = with_pids.is_file() and "pids" in with_pids.read_text().split()
        else:
            usable = "pids" in names.split(",") and (folder / "cgroup.procs").is_file()
        if usable and os.access(folder, os.W_OK):
            return str(folder)
    return ""


def command(mode: Confinement, limits: Limits, source: str, mark: str) -> list[str]:
    """Return the command that runs `source`, the text of `inside.py`, in this mode.

    `mark` is what the environment of its processes has as MARK. The interpreter is the one of this process, without any
    installed packages.
    """
    python = [str(Path(sys.executable).resolve()), "-s", "-S", "-B", "-P", "-c", source]
    if not mode.bubblewrap:
        return python
    result = [mode.bubblewrap, "--die-with-parent", "--new-session", "--clearenv"]
    result += [f"--unshare-{name}" for name in ("pid", "net", "ipc", "uts", "cgroup-try")]
    result += ["--unshare-user"] if mode.user_namespace else []
    result += ["--cap-drop", "ALL"]
    if mode.uid is not None and not mode.user_namespace:
        result += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # inside.py gives up the user id with them
    for name, value in {**ENVIRONMENT, "HOME": SCRATCH, "TMPDIR": SCRATCH, MARK: mark}.items():
        result += ["--setenv", name, value]
    for folder in folders():
        for parent in reversed(Path(folder).parents[:-1]):  # bubblewrap would make them as closed as they are outside
            result += ["--perms", "0755", "--dir", str(parent)]
        result += (
            ["--symlink", os.readlink(folder), folder] if os.path.islink(folder) else ["--ro-bind", folder, folder]
        )
    result += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    result += ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", SCRATCH]
    # These are in memory, too, and have no size of their own.
    return [*result, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", SCRATCH, *python]


def folders() -> list[str]:
    """Return the folders that are seen inside: the system's and the interpreter's, in no home folder anything else."""
    result = [folder for folder in SYSTEM if os.path.isdir(folder)]
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        path = os.path.realpath(prefix)
        if path != "/" and not any(path == folder or path.startswith(f"{folder}/") for folder in result):
            result.append(path)
    return result


def most_processes(mode: Confinement, limits: Limits) -> int:
    """Return the limit on processes as the kernel counts them: those of the user, or of the user namespace."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    alone = mode.uid is not None or (mode.user_namespace and release >= COUNTED_IN_NAMESPACES)
    return limits.processes + OWN + (0 if alone else threads_of(os.getuid()))


def threads_of(uid: int) -> int:
    """Return how many threads the processes of a user have."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == uid:
                total += len(list((folder / "task").iterdir()))
        except OSError:  # it has ended
            continue
    return total


def unprotected(mode: Confinement, limits: Limits) -> list[str]:
    """Return what a program can do in this mode that it should not be able to."""
    result = []
    if not mode.bubblewrap:
        who = f"user id {mode.uid}" if mode.uid is not None else "root" if os.getuid() == 0 else "you"
        result += [
            "the network",
            f"files that {who} may read, those of home folders with them",
            f"files that {who} may write, each up to {limits.file_bytes // MIB} MiB, however many",
        ]
        if mode.uid is None:
            result.append(f"signals to processes that {who} may end")
        result.append("processes that leave their session and change their environment may outlive the run")
    if not mode.processes:
        result.append("the number of processes (limits do not bind root)")
    return result
