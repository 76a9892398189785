"""Becomes a container's process: `ip netns exec NAME python -I -S enter.py SPEC ARGV...`.

Runs as root in the pod's network namespace and a mount namespace of its own, standard library only.
The first caller gets this machine's files under a writable layer in memory (nothing that it writes
or mounts reaches the host) and leaves its pid; while it lives, later callers (exec probes, hooks)
join it. SPEC is a JSON file:
  scratch            an empty folder to mount the container's files at
  pid_file           where the first process leaves its pid
  mounts             [[path, source, read_only], ...]; sources are folders or files of this machine
  user, group, cwd   of the process, or null; groups: [supplementary ids]
  readable           paths that a user other than root must be able to reach
  read_only_root, no_new_privileges   as in a securityContext
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWNS = 0x00020000
DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "pts"}
LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {source} at {target}: {os.strerror(code)}")


def join(pid_file: str) -> bool:
    """Enters the mounts of the container's first process if it lives in our network namespace."""
    try:
        with open(pid_file) as file:
            pid = int(file.read())
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            return False
        mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        root = os.open(f"/proc/{pid}/root", os.O_PATH)
    except (OSError, ValueError):
        return False
    if _libc.setns(mounts, CLONE_NEWNS) != 0:
        return False
    os.fchdir(root)
    os.chroot(".")
    return True


def submounts() -> list[str]:
    """Mount points of this machine other than / that no other of them contains."""
    with open("/proc/self/mountinfo") as file:
        points = {line.split()[4].encode().decode("unicode_escape") for line in file} - {"/"}
    outer: list[str] = []
    for point in sorted(points):
        if not any(point.startswith(other + "/") for other in outer):
            outer.append(point)
    return outer


def show(point: str, target: str, layer: str) -> None:
    """Another file system of this machine, under a layer of its own, or read-only as it is."""
    try:
        if os.path.isdir(point):
            upper, work = layer + "-upper", layer + "-work"
            os.mkdir(upper)
            os.mkdir(work)
            try:
                data = f"lowerdir={point},upperdir={upper},workdir={work}"
                mount("octavo", target, "overlay", 0, data)
                return
            except OSError:
                pass  # not every kind can lie under another
        mount(point, target, None, MS_BIND | MS_REC)
        mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    except OSError:
        pass  # a container need not see what cannot be shown


def make_devices(folder: str) -> None:
    """A /dev of its own with this machine's harmless devices and its GPUs."""
    names = [name for name in os.listdir("/dev") if name in DEVICES or name.startswith("nvidia")]
    mount("octavo", folder, "tmpfs", 0, "mode=0755")
    for name in names:
        target = os.path.join(folder, name)
        if os.path.isdir(f"/dev/{name}"):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/dev/{name}", target, None, MS_BIND | MS_REC)
    for name, target in LINKS.items():
        os.symlink(target, os.path.join(folder, name))
    os.mkdir(folder + "/shm")
    mount("octavo", folder + "/shm", "tmpfs", 0, "mode=1777")


def make_root(scratch: str) -> str:
    """This machine's file tree under a layer in memory; returns its path."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    points = submounts()
    mount("octavo", scratch, "tmpfs", 0)
    upper, work, root = (os.path.join(scratch, name) for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        os.mkdir(folder)
    mount("octavo", root, "overlay", 0, f"lowerdir=/,upperdir={upper},workdir={work}")
    for number, point in enumerate(points):
        if point in ("/proc", "/sys"):
            mount(point, root + point, None, MS_BIND | MS_REC)
        elif point != "/dev":
            show(point, root + point, os.path.join(scratch, f"layer-{number}"))
    make_devices(root + "/dev")
    return root


def make_reachable(paths: list[str]) -> None:
    """An image's content is for any user, a checkout below /root is not: opens the way to it."""
    for path in paths:
        while path != "/":
            path = os.path.dirname(path)
            mode = os.stat(path).st_mode
            if not mode & 0o001:
                os.chmod(path, mode | 0o055)


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    argv = sys.argv[2:]
    if not join(spec["pid_file"]):
        # Opened now, on the host's side; bound after chroot, so that no link leads outside.
        sources = [
            (path, os.open(source, os.O_PATH), os.path.isdir(source), read_only)
            for path, source, read_only in spec["mounts"]
        ]
        pid_file = os.open(spec["pid_file"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.chroot(make_root(spec["scratch"]))
        os.chdir("/")
        for path, source, is_folder, read_only in sorted(sources, key=lambda entry: len(entry[0])):
            os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
            if not is_folder and not os.path.lexists(path):
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
            mount(f"/proc/self/fd/{source}", path, None, MS_BIND | MS_REC)
            if read_only:
                mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
            os.close(source)
        if spec["user"] is not None:
            make_reachable(spec["readable"])
        if spec["read_only_root"]:
            mount(None, "/", None, MS_BIND | MS_REMOUNT | MS_RDONLY)
        os.write(pid_file, str(os.getpid()).encode())
        os.close(pid_file)
    os.chdir(spec["cwd"] or "/")
    if spec["group"] is not None or spec["groups"]:
        os.setgroups(spec["groups"])
    if spec["group"] is not None:
        os.setgid(spec["group"])
    if spec["user"] is not None:
        os.setuid(spec["user"])
    if spec["no_new_privileges"]:
        _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"exec {argv[0]!r}: {error.strerror}", file=sys.stderr)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
