"""Tells network file systems from disks."""

import re
from contextlib import suppress
from pathlib import Path

# As the kernel names them. Several machines share them, and locks and mapped files may not work there as on a disk.
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "mount-s3", "nfs", "nfs4", "orangefs", "panfs", "pvfs2",
    "smb3", "smbfs", "virtiofs", "wekafs",
}  # fmt: skip


MOUNTS = Path("/proc/self/mounts")  # of this process, a line each: device, folder, type, options


def is_on_network(path: Path) -> bool:
    return file_system(path) in NETWORK


def file_system(path: Path) -> str | None:
    """The type of the file system that the path is on, or will be. None where the system does not tell."""
    path, found = path.resolve(), None
    with suppress(OSError):
        longest = -1
        for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
            _, folder, kind, *_ = line.split(" ")
            place = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), folder))
            if path.is_relative_to(place) and len(place.parts) >= longest:  # a later mount covers an earlier one
                found, longest = kind, len(place.parts)
    return found
