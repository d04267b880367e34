# SPDX-License-Identifier: Apache-2.0
"""One cell of bench/chaos: a stack under load, one fault at one step, and everything counted.

A program of ours is held at a step by its fault points (brokers/fault.h): the file of that name
is made, and whoever comes there first stops itself. Then the fault happens, exactly there.

Times that are waited here are the fault itself (half a minute of SIGSTOP, a cut cable); for
everything else the event is waited for.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from datetime import datetime
from typing import NamedTuple

import chaos_hosts
import chaos_load
import chaos_topics
import namespace
from chaos_cells import HOST_STEPS
from pg_pair import PostgresPair
from receiver import Receiver
from stack import BINARY, ROOT, Stack, command_line, descendants, wait_until

IN_FLIGHT = 50
BURST = 70
SERVICE_MS = 500  # of two workers with six slots: slower than the burst
AFTER = 15
HOLD_SECONDS = 40
LATE_SECONDS = 8  # the goal of a failover
SERVICES = ("gateway", "broker", "agent", "webhook", "ingest")
DISKS_MB = {"kafka": 1024, "postgres": 1024, "redis": 64, "blobs": 2048}


class Scale(NamedTuple):
    """How long faults last, and the settings that go with it."""

    name: str
    stop_s: float
    full_s: float
    env: dict


FULL = Scale("full", 30, 15, {"HEADRACE_SCHEDULE_PERCENT": 5})
QUICK = Scale("quick", 4, 2, {
    "HEADRACE_LEASE": "1s", "HEADRACE_HEARTBEAT": "100ms", "HEADRACE_SESSION": "2s",
    "HEADRACE_CLAIM": "2s", "HEADRACE_SCHEDULE_PERCENT": 5, "HEADRACE_ACCEPT_WAIT": "1s",
    "HEADRACE_TOPICS_SESSION": "1s"})


def now():
    return time.time()


def metric(url, name):
    try:
        text = chaos_load.request(url, "GET", "/metrics", "", parse=False)[1].decode()
    except (OSError, http.client.HTTPException):
        return 0
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if line.startswith((name + "{", name + " "))))


def is_ready(url):
    try:
        return chaos_load.request(url, "GET", "/readyz", "", parse=False)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


class World:
    """A stack that may be hurt; cells run on it one after another."""

    def __init__(self, scale, pair=False):
        self.scale = scale
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
        self.faults = self.directory / "faults"
        self.faults_there = self.directory / "faults-there"
        self.receiver = Receiver()
        self.pair = PostgresPair(self.directory / "pair") if pair else None
        self.machine = None
        self.extra = []  # programs beside those of dev
        self.stack = None

    def __enter__(self):
        for directory in (self.faults, self.faults_there):
            directory.mkdir()
        args = []
        if namespace.inside():
            for name, size in DISKS_MB.items():
                namespace.small_disk(self.directory / "data" / name, size)
        if self.pair is not None:
            self.pair.start()
            args = ["--postgres", self.pair.url]
        self.receiver.__enter__()
        env = {"HEADRACE_FAULT_DIR": self.faults, **self.scale.env, **chaos_hosts.ENV}
        self.stack = Stack(on_death="keep", env=env, args=args, data_dir=self.directory / "data").start()
        self.stack.push_sim("sim", slots=6, replicas=2, service_ms=SERVICE_MS)
        return self

    def __exit__(self, *_):
        for process in self.extra:
            if process.poll() is None:
                process.kill()
                process.wait()
        if self.machine is not None:
            self.machine.close()
        if self.stack is not None:
            for pid in descendants(self.stack.process.pid) if self.stack.process else []:
                signal_to(pid, signal.SIGCONT)
            self.stack.close()
        if self.pair is not None:
            self.pair.close()
        self.receiver.__exit__()
        for name in DISKS_MB if namespace.inside() else ():
            subprocess.run(["umount", "-l", str(self.directory / "data" / name)], check=False, stderr=subprocess.DEVNULL)
        if not os.environ.get("HEADRACE_KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- what is well ---------------------------------------------------------------------

    def is_well(self):
        services = self.stack.services()
        if any(service["state"] not in ("ready", "absent", "given") for service in services.values()):
            return False
        url = services["broker"]["url"]
        return metric(url, "headrace_broker_shard_live") == 1 and metric(url, "headrace_broker_workers") >= 2

    def mend(self):
        """Every service runs, the shard is dev's broker's, two workers have their leases."""
        for name, service in self.stack.services().items():
            if service["state"] == "down" and name != "migrate":
                self.stack.start_service(name)
        wait_until("the stack to be well", self.is_well, 90, 0.1)

    def quiet(self):
        """Also what nobody was promised has ended."""
        wait_until("no job to be left", lambda: self.stack.sql(
            "SELECT count(*) FROM headrace.job WHERE state IN (1, 2)") == [["0"]], 60, 0.2)

    # --- holding a program at a step -------------------------------------------------------

    def arm(self, step, there=False):
        ((self.faults_there if there else self.faults) / step).touch()

    def held(self, step, there=False):
        """The pid of whoever was stopped there."""
        directory = self.faults_there if there else self.faults
        found = wait_until(f"a program to come to {step}", lambda: list(directory.glob(f"{step}.*")),
                           HOLD_SECONDS)[0]
        pid = int(found.suffix[1:])
        wait_until(f"{step} to be held", lambda: state_of(pid) == "T", 10)
        found.unlink()
        return pid

    def disarm(self):
        for directory in (self.faults, self.faults_there):
            for path in directory.iterdir():
                path.unlink()

    # --- a second machine and programs on it ---------------------------------------------------

    def second_machine(self):
        if self.machine is None:
            self.machine = namespace.Machine()
            hba = self.directory / "data/postgres/data/pg_hba.conf"
            hba.write_text(hba.read_text() + f"host all all {namespace.SECOND}/32 scram-sha-256\n")
            self.stack.sql("SELECT pg_reload_conf()")
        self.stack.redis("CONFIG", "SET", "protected-mode", "no")  # it asks for loopback or a password
        return self.machine

    def run_there(self, *words, **env):
        """Another `headrace WORD…`, on the second machine."""
        log = self.directory / f"there-{len(self.extra)}-{words[0]}.log"
        machine = self.second_machine()
        process = machine.run([BINARY, *words], self.environment(
            HEADRACE_FAULT_DIR=self.faults_there, HEADRACE_LISTEN=machine.ADDRESS,
            HEADRACE_TUNNEL_LISTEN=machine.ADDRESS, **env), log)
        self.extra.append(process)
        return process, log

    def run_here(self, *words, **env):
        log = self.directory / f"here-{len(self.extra)}-{words[0]}.log"
        with open(log, "ab") as out:
            self.extra.append(subprocess.Popen(
                [BINARY, *words], env=self.environment(**env), stdout=out, stderr=out,
                preexec_fn=namespace.die_with_parent))
        return self.extra[-1], log

    def environment(self, **more):
        env = {"PATH": os.environ["PATH"], **{k: str(v) for k, v in self.scale.env.items()}}
        for name in ("kafka", "redis", "postgres"):
            env[f"HEADRACE_{name.upper()}"] = self.stack.url(name)
        env["HEADRACE_BLOBS"] = str(self.directory / "data/blobs")
        env["HEADRACE_SEAL_KEY_FILE"] = str(self.directory / "data/seal.key")
        env.update({k: str(v) for k, v in more.items()})
        return env

    # --- what was said -------------------------------------------------------------------------

    def logs(self):
        data = self.directory / "data"
        return [*data.glob("logs/*.log"), *data.glob("agent/**/*.log"), *self.directory.glob("*.log"),
                *self.directory.glob("*/logs/*.log")]

    def first_word(self, since):
        """When one of our programs first said after `since` that something is wrong, or that it has taken
        something over; None: nobody did."""
        telling = {"shard_taken", "lost", "revoked", "elected", "worker_ended", "host_gone", "draining"}
        first = None
        for path in self.logs():
            for line in tail(path):
                try:
                    said = json.loads(line)
                    at = datetime.fromisoformat(said["ts"]).timestamp()
                except (ValueError, KeyError, TypeError):
                    continue
                if at >= since and (said.get("level") in ("warn", "error") or said.get("event") in telling):
                    first = at if first is None else min(first, at)
        return first


def tail(path, size=2_000_000):
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def state_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def signal_to(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def pause(seconds):
    """The fault's own length: what is waited for here is the time itself."""
    time.sleep(seconds)


# --- the faults -----------------------------------------------------------------------------------


class Hurt:
    """Carries out one cell's fault. began, ended: when."""

    def __init__(self, world, cell, load):
        self.world, self.cell, self.load = world, cell, load
        self.stack, self.scale = world.stack, world.scale
        self.began = self.ended = None
        self.in_flight = 0

    def load_up(self, count=BURST):
        while chaos_load.in_flight(self.stack, self.load) < count:
            self.load.burst(BURST)

    def begin(self):
        self.in_flight = chaos_load.in_flight(self.stack, self.load)
        self.began = now()

    def run(self):
        cell = self.cell
        if cell.fault == "cut":
            CUTS[cell.program](self)
        elif cell.fault == "failover":
            self.failover()
        elif cell.step in HOST_STEPS:
            self.hurt_host()
        elif cell.step == "load":
            self.hurt_under_load()
        elif cell.step.startswith(cell.program):
            self.hurt_held()
        else:
            self.hurt_server_while_held()
        self.ended = now()
        self.world.disarm()

    # --- our own programs, held at a step ---

    def lead_there(self):
        """Arms the step and does what leads a program to it."""
        step = self.cell.step
        self.load_up()
        self.world.arm(step)
        if step == "gateway_late":
            pids = self.pids_of("kafka")
            refused = self.load.refused
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                wait_until("a 503", lambda: self.load.refused > refused, 30)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        elif step in ("broker_epoch_raised", "broker_offsets_read"):
            self.stack.stop_service("broker")
            self.stack._order("start broker")
        elif step == "broker_revoked":
            self.stack._order("stop broker")
        elif step == "agent_gone":
            os.kill(self.one("worker"), signal.SIGKILL)
        elif step.startswith("ingest_"):
            self.load.records()

    def one(self, program):
        """A worker, or its engine host. One that outlived its agent is nobody's child any more, but it
        still names the directory."""
        def found():
            mine = self.stack.pids(program)  # of the agent that is at hand, and not of one far away
            if mine:
                return mine
            workers = [int(entry.name) for entry in pathlib.Path("/proc").glob("[0-9]*")
                       if command_line(entry.name)[1:2] == ["worker"]
                       and str(self.world.directory) in " ".join(command_line(entry.name))]
            if program == "worker":
                return workers
            return [pid for worker in workers for pid in descendants(worker) if command_line(pid)[1:2] == [program]]

        return wait_until(f"a {program} to run", found)[0]

    def hurt_held(self):
        program, fault = self.cell.program, self.cell.fault
        second = self.standby_broker() if program == "broker" and fault == "stop" else None
        self.lead_there()
        pid = self.world.held(self.cell.step)
        self.begin()
        if fault == "stop":
            if program == "ingest":
                second = self.standby_ingest()
            pause(self.scale.stop_s)
            os.kill(pid, signal.SIGCONT)
        elif fault == "kill":
            self.kill(program, pid)
        else:
            os.kill(pid, signal.SIGCONT)
            self.restart(program, pid)
        if second is not None:
            self.leave(second)

    def kill(self, program, pid):
        if program in SERVICES:
            self.stack.kill_service(program)
            self.stack.start_service(program)
        else:
            os.kill(pid, signal.SIGKILL)  # its agent, or its worker, starts it again

    def restart(self, program, pid):
        if program in SERVICES:
            if self.stack.services()[program]["state"] != "stopping":
                self.stack._order(f"stop {program}")
            self.stack.wait_state(program, "down", 60)
            self.stack.start_service(program)
        else:
            os.kill(pid, signal.SIGTERM)

    def standby_broker(self):
        """Another broker, who has no shard yet."""
        process, log = self.world.run_here("broker", HEADRACE_INSTANCE="second", HEADRACE_PORT=0)
        wait_until("the second broker to be elected", lambda: '"elected"' in log.read_text(), 60)
        return process

    def standby_ingest(self):
        """Another ingest: it gets the partitions of one that is silent. One that came before would have its share,
        perhaps that which the other one is to be held at."""
        process, log = self.world.run_here("ingest", HEADRACE_PORT=0)
        wait_until("the second ingest to start", lambda: '"started"' in log.read_text(), 60)
        return process

    def leave(self, process):
        process.terminate()
        process.wait(timeout=60)

    def hurt_host(self):
        """A host of user code, by its pid. One that loads is one that was just started again."""
        program, step = self.cell.program, self.cell.step
        self.load_up()  # more than all slots take
        if step == "loading":
            pid = chaos_hosts.loading(self.world, program)
        else:
            pid = chaos_hosts.hosts(self.world, program)[0]
        self.begin()
        if self.cell.fault == "kill":
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGSTOP)
        pause(self.scale.stop_s)
        signal_to(pid, signal.SIGCONT)

    # --- servers ---

    def pids_of(self, service):
        pid = self.stack.services()[service]["pid"]
        return [pid] + descendants(pid)

    def hurt_under_load(self):
        program, fault = self.cell.program, self.cell.fault
        self.load_up()
        self.begin()
        if fault == "full":
            self.fill(program)
        elif program == "everything":
            self.stack.kill_dev()
            self.stack.start()
            self.load.urls[:] = [self.stack.url("gateway")]
        elif fault == "flush":
            self.stack.redis("FLUSHALL")
        elif fault == "stop":
            pids = {"host-c": lambda: [self.one("host-c")], "agent": lambda: self.stack.pids("agent")}.get(
                program, lambda: self.pids_of(program))()
            for pid in pids:
                signal_to(pid, signal.SIGSTOP)
            pause(self.scale.stop_s)
            for pid in pids:
                signal_to(pid, signal.SIGCONT)
        elif program == "host-c":
            os.kill(self.one("host-c"), signal.SIGKILL)
        elif fault == "kill":
            self.stack.kill_service(program)
            self.stack.start_service(program)
        else:
            self.stack.restart_service(program)

    def fill(self, name):
        directory = self.world.directory / "data" / name
        filler = namespace.fill_disk(directory)
        pause(self.scale.full_s)
        filler.unlink()
        if name in self.stack.services() and self.stack.services()[name]["state"] == "down":
            self.stack.start_service(name)

    def hurt_server_while_held(self):
        self.load_up()
        self.world.arm(self.cell.step)
        pid = self.world.held(self.cell.step)
        self.begin()
        server = self.cell.program
        if self.cell.fault == "flush":
            self.stack.redis("FLUSHALL")
            os.kill(pid, signal.SIGCONT)
            return
        self.stack.kill_service(server)
        os.kill(pid, signal.SIGCONT)
        self.stack.start_service(server)

    def failover(self):
        held = None
        self.load_up()
        if self.cell.step != "load":
            self.world.arm(self.cell.step)
            held = self.world.held(self.cell.step)
        self.begin()
        self.world.pair.kill_primary()
        if held is not None:
            os.kill(held, signal.SIGCONT)
        self.world.pair.promote()

    # --- a cut network ---

    def cut_after(self, meanwhile=None):
        """Holds the program of the second machine at its step, cuts its cable, lets it go on."""
        pid = self.world.held(self.cell.step, there=True)
        self.begin()
        self.world.machine.cut()
        os.kill(pid, signal.SIGCONT)
        if meanwhile is not None:
            meanwhile()
        pause(max(0.0, self.scale.stop_s - (now() - self.began)))
        self.world.machine.heal()

    def cut_gateway(self):
        port = 18080
        process, _ = self.world.run_there("gateway", HEADRACE_PORT=port, HEADRACE_LOOPBACK_WEBHOOKS="true")
        url = f"http://{self.world.machine.ADDRESS}:{port}"
        wait_until("the second gateway", lambda: is_ready(url), 60, 0.1)
        here = list(self.load.urls)
        self.load.urls[:] = [url]
        self.load_up(2 * BURST)  # jobs end until the submit comes that it is held at
        self.world.arm(self.cell.step, there=True)
        self.cut_after(lambda: self.load.urls.__setitem__(slice(None), here))
        self.load.urls[:] = here
        self.leave(process)

    def cut_broker(self):
        process, log = self.world.run_there("broker", HEADRACE_INSTANCE="second", HEADRACE_PORT=0)
        wait_until("the second broker to be elected", lambda: '"elected"' in log.read_text(), 60)
        self.stack.stop_service("broker")
        wait_until("the second broker to own the shard", lambda: '"shard_live"' in log.read_text(), 60)
        self.load_up()
        self.world.arm(self.cell.step, there=True)
        self.cut_after(lambda: self.stack.start_service("broker"))
        self.leave(process)

    def cut_worker(self):
        process, _ = self.world.run_there(
            "worker", "--worker=there-1", "--pool=sim", "--shard=0", "--deployment=sim", "--model=sim",
            "--engine=sim", '--engine-settings={"test_mode":true,"service_ms":' + f"{SERVICE_MS}}}", "--slots=6",
            "--heartbeat=" + self.scale.env.get("HEADRACE_HEARTBEAT", "1s"))
        url = self.stack.url("broker")
        wait_until("three workers", lambda: metric(url, "headrace_broker_workers") >= 3, 60, 0.1)
        self.load_up()
        self.world.arm(self.cell.step, there=True)
        self.cut_after()
        self.leave(process)

    def cut_agent(self):
        self.stack.stop_service("agent")
        process, _ = self.world.run_there("agent", HEADRACE_AGENT_HOST="there", HEADRACE_PORT=0,
                                          HEADRACE_AGENT_DIR=self.world.directory / "agent-there")
        url = self.stack.url("broker")
        wait_until("its two workers", lambda: metric(url, "headrace_broker_workers") >= 2, 90, 0.1)
        self.load_up()
        self.world.arm(self.cell.step, there=True)
        victims = [pid for pid in descendants(process.pid) if command_line(pid)[1:2] == ["worker"]]
        os.kill(victims[0], signal.SIGKILL)
        self.cut_after(lambda: self.stack.start_service("agent"))
        self.leave(process)

    def cut_webhook(self):
        process, log = self.world.run_there("webhook", HEADRACE_INSTANCE="second", HEADRACE_PORT=0,
                                            HEADRACE_ALLOW="127.0.0.0/8")
        self.stack.stop_service("webhook")
        self.load_up()
        self.world.arm(self.cell.step, there=True)
        self.cut_after(lambda: self.stack.start_service("webhook"))
        self.leave(process)


    def cut_ingest(self):
        process, log = self.world.run_there("ingest", HEADRACE_PORT=0)
        wait_until("the second ingest to start", lambda: '"started"' in log.read_text(), 60)
        self.stack.stop_service("ingest")
        self.load_up()
        self.world.arm(self.cell.step, there=True)
        self.load.records()
        self.cut_after(lambda: self.stack.start_service("ingest"))
        self.leave(process)


CUTS = {"gateway": Hurt.cut_gateway, "broker": Hurt.cut_broker, "worker": Hurt.cut_worker,
        "agent": Hurt.cut_agent, "webhook": Hurt.cut_webhook, "ingest": Hurt.cut_ingest}


# --- a cell -----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    cell: object
    verdict: str  # "ok", or what was wrong
    counts: dict


def make_load(world, cell, url, seed):
    more = {}
    if cell.step in HOST_STEPS:
        chaos_hosts.deploy(world, cell.program)
        more = {"model": cell.program, "orders": chaos_hosts.orders(cell.program, cell.step, SERVICE_MS),
                "fields": {"stream": True} if cell.step == "streaming" else {}}
    arguments = [url], world.stack.key, world.receiver.url("/hook"), f"{seed}/{cell.name}"
    if cell.program == "ingest":
        return chaos_topics.TopicLoad(world, f"chaos-{int(now() * 1000)}", *arguments)
    return chaos_load.Load(*arguments, **more)


def run_cell(world, cell, seed):
    """Runs it and counts. Raises only when the stack itself could not be used."""
    world.mend()
    began = now()
    url = world.stack.url("gateway")
    offset = chaos_load.completed_end(world.stack)
    fenced = metric(world.stack.url("broker"), "headrace_broker_attempts_fenced_total")
    load = make_load(world, cell, url, seed)
    hurt = Hurt(world, cell, load)
    try:
        hurt.run()
        world.mend()
        load.burst(AFTER)
        if cell.program == "ingest":
            load.records()
    finally:
        load.stop()
    counts = chaos_load.judge(world.stack, load, offset, world.receiver.posts)
    verdict = verdict_of(load, hurt, counts)
    if verdict == "ok":
        world.quiet()
    return Outcome(cell, verdict, finish_counts(world, hurt, load, counts, fenced, now() - began))


def verdict_of(load, hurt, counts):
    wrong = []
    if counts["lost"] or counts["finished"] != counts["accepted"]:
        wrong.append(f"{counts['accepted'] - counts['finished']} of {counts['accepted']} did not succeed, "
                     f"{counts['lost']} not published, {counts['failed']} ended otherwise")
    if counts["doubled"]:
        wrong.append(f"{counts['doubled']} published twice with different contents")
    if counts["unhooked"]:
        wrong.append(f"{counts['unhooked']} webhooks not delivered")
    if counts["split_keys"]:
        wrong.append(f"{counts['split_keys']} keys have two jobs")
    if load.odd:
        wrong.append(f"answers that are neither 201 nor 503: {load.odd[:2]}")
    if hurt.in_flight < IN_FLIGHT:
        wrong.append(f"only {hurt.in_flight} in flight")
    return "; ".join(wrong) or "ok"


def finish_counts(world, hurt, load, counts, fenced, took):
    rows, length = counts.pop("rows"), hurt.ended - hurt.began
    word = world.first_word(hurt.began)
    at = {a.job: a.at for a in load.accepted}
    answered = [float(row[4]) for row in rows if at[row[0]] > hurt.began and int(row[1]) == chaos_load.SUCCEEDED]
    new_fenced = metric(world.stack.url("broker"), "headrace_broker_attempts_fenced_total")
    counts.update(
        in_flight=hurt.in_flight,
        late=sum(float(row[4]) - float(row[3]) > LATE_SECONDS + length for row in rows),
        fenced=new_fenced - fenced if new_fenced >= fenced else new_fenced,  # a new broker counts from 0
        refused=load.refused, refused_unkeyed=load.refused_unkeyed, unheard=load.unheard, fault_s=length, took_s=took,
        detect_s=None if word is None else word - hurt.began,
        recover_s=min(answered) - hurt.began if answered else None)
    return counts
