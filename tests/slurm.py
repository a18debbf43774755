"""A Slurm cluster of two nodes on this machine: munged, slurmctld and two slurmd, from Debian's packages.

`ray symmetric-run` tells nodes apart by their addresses, refuses to start where Ray runs already, and at its end stops
every Ray that it finds. So each node has a network and a process table of its own (Linux namespaces): no other test's
Ray is in them, and nothing outlives them. It takes root, which other users get from `sudo` without a password.
"""

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.processes import wait_for

# The epilog ends what a job has left on a node, as proctrack/cgroup would, which a container has no right to use.
_FILES = {
    "slurm.conf": """
        ClusterName=test
        SlurmctldHost=a
        AuthType=auth/munge
        AuthInfo=socket={folder}/munge.socket,cred_expire=5
        CredType=cred/munge
        SlurmUser=root
        SlurmdUser=root
        StateSaveLocation={folder}/state
        SlurmdSpoolDir={folder}/spool-%n
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/%n.pid
        SlurmctldLogFile={folder}/slurmctld.log
        SlurmdLogFile={folder}/%n.log
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SelectTypeParameters=CR_CPU
        SlurmdParameters=config_overrides
        SchedulerParameters=batch_sched_delay=0,sched_interval=1
        MpiDefault=none
        KillWait=10
        Epilog={folder}/epilog
        NodeName=a,b CPUs=1
        PartitionName=all Nodes=ALL Default=YES
        """,
    "hosts": "127.0.0.1 localhost\n10.77.0.1 a\n10.77.0.2 b\n",
    "epilog": "#!/bin/sh\nkill -9 -1\n",
    "network": """
        hostname a && ip link set lo up
        ip link add one type veth peer name two
        ip address add 10.77.0.1/24 dev one && ip link set one up
        mount --bind hosts /etc/hosts
        """,
    "a": "mount -t tmpfs none /tmp/ray && exec slurmd -D -N a",
    "b": """
        hostname b && ip link set lo up
        until ip address add 10.77.0.2/24 dev two && ip link set two up; do sleep 0.1; done
        mount -t tmpfs none /tmp/ray && exec slurmd -D -N b
        """,
}
_DAEMONS = """
munged --force --key-file=munge.key --socket=$PWD/munge.socket --pid-file=$PWD/munged.pid --seed-file=$PWD/munged.seed \
--log-file=$PWD/munged.log
slurmctld
unshare --pid --fork --mount-proc --kill-child bash ./a </dev/null >a.out 2>&1 &
unshare --pid --fork --mount-proc --kill-child --uts --net bash ./b </dev/null >b.out 2>&1 &
while ip link show two; do ip link set two netns $!; sleep 0.1; done
"""


class Slurm:
    """The cluster, with its files in `folder`. Its jobs have the environment's PATH, and `folder` as their HOME."""

    def __init__(self, folder: Path) -> None:
        for program in ("munged", "slurmctld", "slurmd", "unshare", "ip"):
            found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
            assert found, f"{program} is needed: apt-get install slurm-wlm munge util-linux iproute2"
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        done = subprocess.run([*root, "true"], check=False)
        assert done.returncode == 0, "Slurm's daemons need root, or sudo without a password"
        self._folder, self._rays = folder, Path("/tmp/ray")  # where `ray start` puts its files, on each node its own
        self._rays.mkdir(mode=0o777, exist_ok=True)
        self._shell = subprocess.Popen(
            [*root, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--uts", "--net", "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )

    def start(self) -> None:
        """Starts the daemons and waits until both nodes are ready."""
        folder = self._folder
        for name, text in _FILES.items():
            (folder / name).write_text(text.format(folder=folder))
        (folder / "epilog").chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
        for name, value in {**kept, "HOME": folder, "SLURM_CONF": folder / "slurm.conf"}.items():
            self.run(f"export {name}={shlex.quote(str(value))}")
        self.run(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH:/usr/sbin:/sbin")
        self.run("set -e; . ./network; set +e")
        self.run(_DAEMONS)
        wait_for(lambda: self.run("sinfo --noheader --format=%T").split() == ["idle"], seconds=20)

    def run(self, command: str) -> str:
        """What a command prints. It runs on a host of the cluster's network that has Slurm's commands."""
        writes, reads = _there(self._shell.stdin), _there(self._shell.stdout)
        writes.write(f"{command}\necho; echo END\n")
        writes.flush()
        lines = list(iter(reads.readline, "END\n"))
        assert "" not in lines, f"{command}: {lines}"
        return "".join(lines)

    def close(self) -> None:
        """Ends the shell, with which the kernel ends all other processes of its table."""
        _there(self._shell.stdin).close()
        self._shell.wait(60)
        with suppress(OSError):  # it is not empty: another user of this machine uses Ray
            self._rays.rmdir()

    def logs(self) -> str:
        """What the daemons and the jobs have printed last."""
        files = [*self._folder.glob("*.log"), *self._folder.glob("*.out")]
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)


def _there(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
