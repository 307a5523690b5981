"""A real SLURM of two nodes on 127.0.0.1: without root's /etc, systemd or cgroups; taken down by process number.

As a program, ``python tests/slurm/cluster.py`` brings one up, prints what to set, and takes it down at Ctrl-C.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
NODES = ("n1", "n2")
# Debian keeps the servers where only root's PATH looks.
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONF = """
ClusterName=daskem
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=10
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Return the programs that are not installed: apt-get install slurmctld slurmd slurm-client munge."""
    return [name for name in NEEDED if shutil.which(name, path=SEARCHED) is None]


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Bring a cluster up, give the environment in which SLURM's commands find it, and take it down."""
    # A short path: that of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        place = Path(name)
        environment = {**os.environ, "PATH": SEARCHED, "SLURM_CONF": str(place / "slurm.conf")}
        _configure(place)
        stack.callback(_show_logs_if_asked, place)
        _start(stack, environment, *_munge(place))
        _wait(environment, "munge", "-n", "-S", str(place / "munge.socket"))
        _start(stack, environment, "slurmctld", "-D", "-c", "-i")
        for node in NODES:
            _start(stack, environment, "slurmd", "-D", "-N", node)
        _wait(environment, "srun", "--nodes=2", "--time=1", "true")
        stack.callback(subprocess.run, ["scancel", f"--user={getpass.getuser()}"], env=environment, check=False)
        yield environment


def _configure(place: Path) -> None:
    controller, *daemons = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={socket.gethostname()} Port={port} CPUs=4 RealMemory=16000"
        for node, port in zip(NODES, daemons, strict=True)
    )
    text = CONF.format(
        host=socket.gethostname(), controller=controller, user=getpass.getuser(), place=place, nodes=nodes
    )
    (place / "slurm.conf").write_text(text)
    (place / "state").mkdir()
    for node in NODES:
        (place / f"spool-{node}").mkdir()
    key = place / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    place.chmod(0o755)


def _munge(place: Path) -> list[str]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["munged", "--foreground", *(f"--{option}={place}/munge.{end}" for option, end in files.items())]


def _start(stack: ExitStack, environment: dict[str, str], *command: str) -> None:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(environment: dict[str, str], *command: str, attempts: int = 60) -> None:
    """Run a command until it succeeds: a server that has just begun does not answer yet."""
    for _ in range(attempts):
        run = subprocess.run(["timeout", "10", *command], env=environment, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return
        subprocess.run(["sleep", "0.25"], check=True)
    raise RuntimeError(f"{' '.join(command)} still fails: {run.stderr}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _show_logs_if_asked(place: Path) -> None:
    keep = os.environ.get("DASKEM_SLURM_LOGS")
    if keep:
        for log in place.glob("*.log"):
            shutil.copy(log, keep)


if __name__ == "__main__":
    with slurm() as found:
        print(f"export PATH={SEARCHED} SLURM_CONF={found['SLURM_CONF']}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()
