# SPDX-License-Identifier: Apache-2.0
"""What confined code tries: attacks.py PORT SOCKET PID, where somebody listens on the loopbacks' TCP port,
on the unix socket SOCKET and, for packets, on SOCKET.d; PID is another process of this user. Prints a line
for each attempt: "ALLOWED name" or "refused name: why".

It does not start where nothing confines it, and what it tries changes nothing when it succeeds: a value is set to
what it is already, a file is opened and not written to."""

import ctypes
import os
import resource
import socket
import sys

STATUS = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
if STATUS["NoNewPrivs"] != "1" or STATUS["Seccomp"] != "2" or int(STATUS["CapEff"], 16) != 0:
    sys.exit("attacks.py runs under `headrace confine` only")

PORT, SOCKET, PID = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
LIBC = ctypes.CDLL(None, use_errno=True)
MSG_FASTOPEN, MPTCP, VSOCK = 0x20000000, 262, 40
SYS_SOCKET, SYS_IO_URING_SETUP, SYS_KEYCTL, SYS_PIDFD_GETFD = (
    (41, 425, 250, 438) if os.uname().machine == "x86_64" else (198, 425, 219, 438))


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("name_size", ctypes.c_uint32), ("pieces", ctypes.POINTER(Piece)),
                ("piece_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
                ("flags", ctypes.c_int), ("sent", ctypes.c_uint)]


def call(number, *args):
    LIBC.syscall.restype = ctypes.c_long
    answer = LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def connect(family, address, protocol=0):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as client:
        client.settimeout(2)
        client.connect(address)


def first_packet(send):
    """A connection that is made by what is sent, where connect(2) may not be asked."""
    with socket.socket() as client:
        try:
            send(client, ("127.0.0.1", PORT))
        except BlockingIOError:
            pass  # it is being made


def send_many(client, address):
    name = (socket.AF_INET.to_bytes(2, "little") + address[1].to_bytes(2, "big") + socket.inet_aton(address[0]) +
            bytes(8))
    name = ctypes.create_string_buffer(name, 16)
    message = Message(ctypes.cast(name, ctypes.c_void_p), 16, ctypes.pointer(Piece(b"x", 1)), 1, None, 0, 0, 0)
    if LIBC.sendmmsg(client.fileno(), ctypes.byref(message), 1, MSG_FASTOPEN) < 1:
        raise OSError(ctypes.get_errno(), "sendmmsg")


def bind(family, host, port):
    with socket.socket(family) as server:
        server.bind((host, port))


def packet(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", address)


def packet_of_a_pair():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", SOCKET + ".d")


def lower_limits():
    """0 of them would be deadly; as they are is enough to see."""
    resource.prlimit(PID, resource.RLIMIT_NOFILE, resource.prlimit(PID, resource.RLIMIT_NOFILE))


def write_to(path):
    with open(path, "r+b"):
        pass


def make(folder):
    os.mkdir(folder)
    os.rmdir(folder)


def must(answer):
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


ATTEMPTS = {
    "tcp": lambda: connect(socket.AF_INET, ("127.0.0.1", PORT)),
    "tcp6": lambda: connect(socket.AF_INET6, ("::1", PORT)),
    "mptcp": lambda: connect(socket.AF_INET, ("127.0.0.1", PORT), MPTCP),
    "fastopen-sendto": lambda: first_packet(lambda s, to: s.sendto(b"x", MSG_FASTOPEN, to)),
    "fastopen-sendmsg": lambda: first_packet(lambda s, to: s.sendmsg([b"x"], [], MSG_FASTOPEN, to)),
    "fastopen-sendmmsg": lambda: first_packet(send_many),
    "bind": lambda: bind(socket.AF_INET, "127.0.0.1", PORT + 1),
    "bind6": lambda: bind(socket.AF_INET6, "::1", PORT),
    "udp": lambda: packet(socket.AF_INET, ("127.0.0.1", PORT)),
    "unix": lambda: connect(socket.AF_UNIX, SOCKET),
    "unix-packet": lambda: packet(socket.AF_UNIX, SOCKET + ".d"),
    "unix-packet-of-a-pair": packet_of_a_pair,
    "vsock": lambda: call(SYS_SOCKET, VSOCK, 1, 0),
    "vsock-behind-a-bit": lambda: call(SYS_SOCKET, 1 << 32 | VSOCK, 1, 0),
    "kill": lambda: os.kill(PID, 0),
    "limits": lower_limits,
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, PID, os.getpriority(os.PRIO_PROCESS, PID)),
    "environ": lambda: open("/proc/%d/environ" % PID).read(),
    "root": lambda: os.listdir("/proc/%d/root/" % PID),
    "memory": lambda: open("/proc/%d/mem" % PID, "rb"),
    "ptrace": lambda: must(LIBC.ptrace(0x4206, PID, 0, 0)),  # PTRACE_SEIZE, which does not stop it
    "pidfd": lambda: call(SYS_PIDFD_GETFD, os.pidfd_open(PID), 1, 0),
    "user-namespace": lambda: must(LIBC.unshare(0x10000000)),
    "io_uring": lambda: call(SYS_IO_URING_SETUP, 8, 0),
    "keys": lambda: call(SYS_KEYCTL, 0, -3, 0),
    "sysctl": lambda: write_to("/proc/sys/kernel/core_pattern"),
    "interrupts": lambda: write_to("/proc/irq/default_smp_affinity"),
    "log-file": lambda: write_to("/proc/self/fd/2"),
    "cgroup": lambda: write_to("/sys/fs/cgroup/pids/cgroup.procs"),
    "system": lambda: write_to("/etc/passwd"),
    "root-folder": lambda: make("/attack"),
    "devices": lambda: make("/dev/attack"),
    "state-of-programs": lambda: os.listdir("/var/lib"),
    "run": lambda: os.listdir("/run"),
}

for attempt, carry_out in ATTEMPTS.items():
    try:
        carry_out()
        print("ALLOWED", attempt, flush=True)
    except Exception as error:
        print("refused %s: %s" % (attempt, error), flush=True)
