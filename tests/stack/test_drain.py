# SPDX-License-Identifier: Apache-2.0
"""Goal: SIGTERM ends every program within its drain limit and a little, whatever is away.

Method: programs of their own with jobs in flight beside a stack's servers; each server in turn is
killed, or stands still (it takes connections and answers nothing, which is worse); then all
programs are told to end at once. The times are printed: pytest -s.
"""

import os
import signal
import threading
import time

import pytest
from fleet import Fleet, Load, free_port
from stack import descendants, is_running, wait_until

DRAIN_SECONDS = 1
EXTRA_SECONDS = 2  # what is promised beyond the drain limit
ROLES = ("gateway", "broker", "worker", "agent", "webhook")
CODE_UNHEARD = 3  # of a worker whose last reports nobody took


@pytest.fixture(scope="module")
def platform(request):
    from conftest import run_stack

    for stack in run_stack(request, only="kafka,redis,postgres,migrate,broker,gateway"):
        stack.stop_service("broker")  # it has made the topics
        stack.push_sim_rows("sim", slots=4, service_ms=300)
        yield stack


def start_all(fleet):
    drain = f"{DRAIN_SECONDS}s"
    programs = {
        "gateway": fleet.start("gateway", "gateway", drain=drain, lame_duck="100ms"),
        "broker": fleet.start("broker", "broker", drain=drain, instance="drained"),
        "agent": fleet.start("agent", "agent", drain_timeout=drain),
        "webhook": fleet.start("webhook", "webhook", drain_timeout=drain, instance="drained"),
        "worker": fleet.start("worker", "worker", drain_timeout=drain, worker="by-hand", pool="by-hand",
                              engine="sim"),
    }
    for program in programs.values():
        program.wait_ready()
    return programs


def hang(stack, server):
    """The server and its children stand still."""
    top = stack.services()[server]["pid"]
    pids = [top] + descendants(top)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return lambda: [os.kill(pid, signal.SIGCONT) for pid in pids if is_running(pid)]


def kill(stack, server):
    stack.kill_service(server)
    return lambda: stack.start_service(server)


def end_all(programs):
    """SIGTERM to all at once; returns {role: (seconds, exit code)}."""
    began, ends = time.monotonic(), {}

    def wait(role, program):
        code = program.wait(DRAIN_SECONDS + 60)
        ends[role] = (time.monotonic() - began, code)

    threads = [threading.Thread(target=wait, args=item) for item in programs.items()]
    for program in programs.values():
        program.send(signal.SIGTERM)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize("server", ["kafka", "postgres", "redis"])
@pytest.mark.parametrize("disturb", [kill, hang])
def test_sigterm_with_a_dead_server_ends_in_time(platform, tmp_path, server, disturb):
    with Fleet(platform, tmp_path) as fleet:
        programs = start_all(fleet)
        children = [pid for pid in descendants(programs["agent"].process.pid)]
        load = Load(programs["gateway"].port, platform.key,
                    [("/model/sim/production/async_predict", {"model_input": {"n": 1}})])
        try:
            load.wait_more(20)
            mend = disturb(platform, server)
            try:
                ends = end_all(programs)
            finally:
                mend()
        finally:
            load.stop()
        print(f"\n{disturb.__name__} of {server}: " + ", ".join(
            f"{role} {ends[role][0]:.2f} s ({ends[role][1]})" for role in ROLES))
        late = {role: end for role, end in ends.items() if end[0] > DRAIN_SECONDS + EXTRA_SECONDS}
        assert not late, late
        wrong = {role: end for role, end in ends.items()
                 if end[1] != 0 and (role, end[1]) != ("worker", CODE_UNHEARD)}
        assert not wrong, wrong
        wait_until("no child of the agent to be left", lambda: not any(map(is_running, children)), 2)


def test_worker_whose_kafka_never_was_there_ends_in_time(platform, tmp_path):
    """It has not even said Hello, and asks for its topic on a thread that cannot be interrupted."""
    with Fleet(platform, tmp_path) as fleet:
        worker = fleet.start("worker", "alone", kafka=f"127.0.0.1:{free_port()}", worker="alone", pool="alone",
                             engine="sim", drain_timeout=f"{DRAIN_SECONDS}s")
        worker.wait_log("kafka_not_ready")
        took = worker.stop()
        print(f"\nworker without Kafka: {took:.2f} s ({worker.wait()})")
        assert took <= DRAIN_SECONDS + EXTRA_SECONDS


def test_worker_is_gone_within_its_limit_with_kafka_gone_and_a_job_that_hangs(platform, tmp_path):
    """The model obeys nobody, the reports reach nobody: the limit alone ends it."""
    with Fleet(platform, tmp_path) as fleet:
        broker = fleet.start("broker", "broker", instance="hung")
        agent = fleet.start("agent", "agent", drain_timeout=f"{DRAIN_SECONDS}s")
        broker.wait_ready()
        agent.wait_ready()
        job = platform.submit("sim", {"sim": {"hang": True}})
        wait_until("the job to run", lambda: platform.job(job)["status"] == "IN_PROGRESS")
        workers = [pid for pid in descendants(agent.process.pid)]
        mend = kill(platform, "kafka")
        try:
            took = agent.stop()
            print(f"\nagent with a hung job and no Kafka: {took:.2f} s ({agent.wait()})")
            assert took <= DRAIN_SECONDS + EXTRA_SECONDS
            wait_until("worker and host to be gone", lambda: not any(map(is_running, workers)), 2)
        finally:
            mend()
        agent.mark = agent.log.stat().st_size
        agent.start()
        platform.cancel(job)
        assert platform.wait_final(job)["status"] == "CANCELED"
