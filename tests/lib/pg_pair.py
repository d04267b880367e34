# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL with a synchronous standby, for tests of a failover.

    pair = PostgresPair(directory).start()
    pair.url                    # both hosts, target_session_attrs=read-write
    pair.kill_primary()         # kill -9 of all of it
    pair.promote()              # the standby takes over
"""

import ctypes
import os
import pathlib
import pwd
import secrets
import signal
import subprocess

from stack import descendants, free_port, wait_until

DATABASE = "headrace"
PR_SET_PDEATHSIG = 1


def bin_dir():
    for path in sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True,
                       key=lambda p: int(p.parent.name)):
        if (path / "initdb").exists() and (path / "pg_basebackup").exists():
            return path
    return pathlib.Path(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True,
                                       check=True).stdout.strip())


def unprivileged():
    """PostgreSQL refuses to run as root: there it runs in a user namespace under another uid."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "daemon"):
        try:
            uid = pwd.getpwnam(name).pw_uid
            return ["unshare", "-U", f"--map-user={uid}", f"--map-group={uid}", "--"]
        except KeyError:
            continue
    raise AssertionError("neither postgres nor daemon is an account here")


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    def __init__(self, directory, password, port):
        self.directory, self.password, self.port, self.process = directory, password, port, None
        self.log = directory.parent / f"{directory.name}.log"

    def start(self):
        settings = ["listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=",
                    "timezone=UTC", "log_timezone=UTC", "max_connections=100", "shared_buffers=64MB",
                    "max_wal_senders=4", "wal_level=replica", "hot_standby=on", "wal_keep_size=256MB",
                    "wal_sender_timeout=5s", "wal_receiver_timeout=5s", "wal_retrieve_retry_interval=200ms"]
        options = [word for setting in settings for word in ("-c", setting)]
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                [*unprivileged(), str(bin_dir() / "postgres"), "-D", str(self.directory), *options],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        wait_until(f"PostgreSQL on port {self.port}", self.answers, 60)

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return subprocess.run([str(bin_dir() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
                              check=False).returncode == 0

    def url(self, database=DATABASE):
        return f"postgresql://headrace:{self.password}@127.0.0.1:{self.port}/{database}"

    def sql(self, query, database=DATABASE):
        done = subprocess.run(["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", self.url(database)],
                              input=query.encode(), capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def kill(self):
        """All of it at once, as a machine ends: not only the postmaster."""
        for pid in [self.process.pid] + descendants(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()


class PostgresPair:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        password = secrets.token_hex(12)
        self.primary = Server(self.directory / "primary", password, free_port())
        self.standby = Server(self.directory / "standby", password, free_port())
        self.password = password

    def _run(self, *command, **more):
        done = subprocess.run([*unprivileged(), *map(str, command)], capture_output=True, timeout=120,
                              env={**os.environ, "LC_ALL": "C.UTF-8", **more})
        assert done.returncode == 0, done.stderr.decode()

    def start(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        secret = self.directory / "password"
        secret.write_text(self.password)
        self._run(bin_dir() / "initdb", "-D", self.primary.directory, "-U", "headrace", "-A", "scram-sha-256",
                  f"--pwfile={secret}", "--locale=C.UTF-8", "-E", "UTF8", "--no-sync")
        with open(self.primary.directory / "pg_hba.conf", "a", encoding="ascii") as hba:
            hba.write("host replication headrace 127.0.0.1/32 scram-sha-256\n")
        self.primary.start()
        self.primary.sql(f"CREATE DATABASE {DATABASE}", "postgres")
        self._run(bin_dir() / "pg_basebackup", "-D", self.standby.directory, "-R", "-X", "stream",
                  "--checkpoint=fast", "-d", f"postgresql://headrace@127.0.0.1:{self.primary.port}/postgres"
                  "?application_name=standby", PGPASSWORD=self.password)
        self.standby.start()
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (*)'; SELECT pg_reload_conf()")
        wait_until("the standby to be synchronous", lambda: self.primary.sql(
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1", 30)
        return self

    @property
    def url(self):
        return (f"postgresql://headrace:{self.password}@127.0.0.1:{self.primary.port},"
                f"127.0.0.1:{self.standby.port}/{DATABASE}?target_session_attrs=read-write")

    def kill_primary(self):
        self.primary.kill()

    def promote(self):
        """The standby takes writes from now on, and waits for no standby of its own: the setting was
        made on the primary, behind the copy."""
        assert self.standby.sql("SELECT pg_promote()") == "t"

    def close(self):
        self.primary.stop()
        self.standby.stop()
