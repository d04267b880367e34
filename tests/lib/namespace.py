# SPDX-License-Identifier: Apache-2.0
"""A world of one's own for tests that cut networks and fill disks, and a second machine in it.

    enter()                     # runs this program again, with its own network and mounts
    if inside(): …              # else why_not() says why not
    machine = Machine()         # its own network, one cable to ours
    machine.run(["headrace", "worker", …])
    machine.cut()               # silence in both directions, nobody is told
    machine.heal()

Needs root, or user namespaces. Nothing outside is touched: interfaces, routes and mounts end with
the processes that live in them.

On the second machine 127.0.0.1 is the first one: the address has no interface there but a route
over the cable. So what servers announce (Kafka says 127.0.0.1 to everybody) is right on both, and
a connection between the two is one TCP connection, with nothing in between to keep it alive.
"""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

MARK = "HEADRACE_TEST_NAMESPACE"
PR_SET_PDEATHSIG = 1
FIRST, SECOND = "10.77.0.1", "10.77.0.2"


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def words():
    """What runs a program with a network and mounts of its own."""
    return ["unshare", "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"]) + ["--"]


def inside():
    return os.environ.get(MARK) == "1"


TRIAL = """ip link set lo up && ip link add hr0 type veth peer name hr1 && ip link set hr0 up &&
tc qdisc replace dev hr0 root blackhole && echo 1 >/proc/sys/net/ipv4/conf/hr0/route_localnet &&
mount -t tmpfs -o size=1m none "$1" && unshare --net true"""


def why_not():
    """Why there can be no such world here; "" when there can."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = subprocess.run([*words(), "sh", "-c", TRIAL, "sh", directory], capture_output=True,
                                  text=True, timeout=30)
        except OSError as error:
            return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["refused"])[-1]


def enter():
    """Runs this very program again inside; returns only when it is inside already."""
    if inside():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    os.environ[MARK] = "1"
    os.execvp("unshare", [*words(), sys.executable, *sys.argv])


def small_disk(directory, size_mb):
    """An empty file system of that size; only inside."""
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "none", str(directory)],
                   check=True)


def fill_disk(directory):
    """Takes all the room that is left; returns the file that holds it."""
    path = pathlib.Path(directory) / "headrace-test-filler"
    block = bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(block[:size]) > 0:
                    pass
            except OSError:
                continue
    return path


def network_of(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


class Machine:
    ADDRESS = SECOND

    def __init__(self):
        assert inside()
        self.processes = []
        self.anchor = subprocess.Popen(["unshare", "--net", "--", "sleep", "infinity"],
                                       preexec_fn=die_with_parent)
        end = time.monotonic() + 10
        while network_of(self.anchor.pid) in (None, network_of("self")):
            assert time.monotonic() < end, "no network namespace"
            time.sleep(0.01)
        self._shell(f"""
            ip link add hr0 type veth peer name hr1 netns {self.anchor.pid}
            ip addr add {FIRST}/24 dev hr0
            ip link set hr0 up
            echo 1 >/proc/sys/net/ipv4/conf/hr0/route_localnet""")
        self._shell(f"""
            ip link set lo up
            ip addr del 127.0.0.1/8 dev lo
            ip addr add {SECOND}/24 dev hr1
            ip link set hr1 up
            echo 1 >/proc/sys/net/ipv4/conf/hr1/route_localnet
            ip route add 127.0.0.1/32 via {FIRST} dev hr1 src {SECOND}""", there=True)

    def words(self):
        return ["nsenter", "--net", "--target", str(self.anchor.pid), "--"]

    def _shell(self, script, there=False):
        subprocess.run([*(self.words() if there else []), "sh", "-ec", script], check=True)

    def run(self, command, env, log):
        """Starts a program there; it ends with us."""
        with open(log, "ab") as out:
            self.processes.append(subprocess.Popen([*self.words(), *command], env=env, stdout=out, stderr=out,
                                                   stdin=subprocess.DEVNULL, preexec_fn=die_with_parent))
        return self.processes[-1]

    def cut(self):
        self._shell("tc qdisc replace dev hr0 root blackhole")
        self._shell("tc qdisc replace dev hr1 root blackhole", there=True)

    def heal(self):
        self._shell("tc qdisc del dev hr0 root 2>/dev/null || true")
        self._shell("tc qdisc del dev hr1 root 2>/dev/null || true", there=True)

    def close(self):
        for process in self.processes + [self.anchor]:
            if process.poll() is None:
                process.kill()
                process.wait()
        subprocess.run(["ip", "link", "del", "hr0"], stderr=subprocess.DEVNULL)
