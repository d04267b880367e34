# SPDX-License-Identifier: Apache-2.0
"""`bench/run training-kills`: kill -9 at random times through whole training runs, and what is counted afterwards.

Two trainers of one machine; jobs of one node and a gang of two. Killed are the training process, a trainer's host, a
trainer, the broker, the gateway and Postgres; `pause` stops a trainer beyond its lease and lets it go on, so that it
comes back with a placement that is over while its script went on all the time. Each script keeps a journal that the
ledger knows nothing of. It ends with an error when a job does not complete, weights are not to the byte those of an
undisturbed run, a manifest is neither whole nor absent, a log has a gap or a line twice, one placement had two
processes, a placement does not go on from the newest complete checkpoint, or more steps ran than that explains.
"""

import collections
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time

STEPS, EVERY, PAUSE_S, JOBS, LEASE_S = 1200, 5, 0.1, 3, 3
VICTIMS = {"script": 4, "host": 3, "trainer": 3, "broker": 2, "pause": 1, "gateway": 1, "postgres": 1}  # how often
GAP_S = (0.2, 2.0)
UNDISTURBED_TRIES, LOST_MAX = 5, 3
ENV = {"HEADRACE_CPUS": "4", "HEADRACE_MEMORY": "8GiB", "HEADRACE_CHECKPOINT_SCAN": "100ms",
       "HEADRACE_TRAINER_LEASE": f"{LEASE_S}s", "HEADRACE_RESTART_DELAY": "50ms"}

# Learns a line of 512 numbers by stochastic gradient descent; the data of a step follow from its number.
SCRIPT = r"""
import array, glob, json, os, random, sys, time
steps, pause, every, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rank, keep = int(os.environ["BT_NODE_RANK"]), os.environ["BT_CHECKPOINT_DIR"]
node = os.environ["BT_WORKING_DIR"].split("/")[-2]  # <job>-<placement>-<rank>
journal = os.open(os.environ["BT_PROJECT_CACHE_DIR"] + "/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
note = lambda *words: os.write(journal, (" ".join(map(str, (node, os.getpid(), time.time(), *words))) + "\n").encode())
at, weights = 0, array.array("d", [0.0] * 512)
for folder in glob.glob(os.environ["BT_LOAD_CHECKPOINT_DIR"] + f"/rank-{rank}/*"):
    at, weights = json.load(open(folder + "/state.json"))["step"], array.array("d", open(folder + "/weights", "rb").read())
note("begins", at)
print("begins at", at, "retry", os.environ["BT_RETRY_COUNT"], flush=True)
while at < steps:
    at += 1
    note("step", at)
    dice = random.Random(f"{seed} {rank} {at}")
    x = [dice.gauss(0, 1) for _ in weights]
    wrong = sum(w * v for w, v in zip(weights, x)) - sum(x[::7])
    for i, v in enumerate(x):
        weights[i] -= 0.001 * wrong * v
    print("step", at, flush=True)
    time.sleep(pause)
    if at % every == 0:
        new = f"{keep}/.new"
        os.makedirs(new)
        open(new + "/base", "wb").write(b"b" * 300000)
        open(new + "/weights", "wb").write(weights.tobytes())
        json.dump({"step": at}, open(new + "/state.json", "w"))
        os.rename(new, f"{keep}/step-{at:05}")
note("over", at)
print("over", flush=True)
"""


class Trainers:
    """dev's trainer and a second one, told apart by their number."""

    def __init__(self, stack, second):
        self.stack, self.second = stack, second
        self.paused = []  # (which, from, to)

    def pids(self, which, subcommand):
        from stack import command_line, descendants

        if which == 0:
            root = self.stack.services()["trainer"]["pid"]
        else:
            root = self.second.process.pid
        found = [pid for pid in [root, *descendants(root)] if pid and command_line(pid)[1:2] == [subcommand]]
        return found

    def kill(self, which):
        if which == 0:
            self.stack.restart_service("trainer", kill=True)
        else:
            self.second.kill()
            self.second.start()


def kill_pid(pids, number=signal.SIGKILL):
    try:
        for pid in pids:
            os.kill(pid, number)
    except ProcessLookupError:
        pass
    return bool(pids)


def disturb(trainers, victim, dice):
    """False: there was nobody to hurt just now."""
    from training_jobs import scripts

    stack, which = trainers.stack, dice.randrange(2)
    if victim == "script":
        found = scripts(stack.process.pid, "python3", "learn.py") + scripts(trainers.second.process.pid, "python3", "learn.py")
        return kill_pid([dice.choice(found)]) if found else False
    if victim == "host":
        return kill_pid(trainers.pids(which, "host-training"))
    if victim == "trainer":
        trainers.kill(which)
        return True
    if victim == "pause":
        pids = trainers.pids(which, "trainer") + trainers.pids(which, "host-training")
        kill_pid(pids, signal.SIGSTOP)
        began = time.time()
        time.sleep(2 * LEASE_S)
        trainers.paused.append((which, began, time.time() + 1))
        return kill_pid(pids, signal.SIGCONT)
    stack.kill_service(victim)
    time.sleep(dice.uniform(0, 1))
    stack.start_service(victim)
    return True


def final_weights(stack, id, steps):
    rows = stack.sql("SELECT c.rank, f->>'digest' FROM headrace.training_checkpoint c, jsonb_array_elements(c.files) f "
                     "WHERE c.job_id = :'a1' AND c.name = :'a2' AND c.state = 'COMPLETE' AND f->>'path' = 'weights' ORDER BY 1",
                     id, f"step-{steps:05}")
    return {int(rank): digest for rank, digest in rows}


def check_manifests(stack, id):
    """Whole, each file in the store with the bytes of its digest; or absent. Their count."""
    import training_jobs

    rows = stack.sql("SELECT c.rank, c.name, c.state, c.files, c.file_count, c.size_bytes FROM headrace.training_checkpoint c "
                     "WHERE c.job_id = :'a1'", id)
    whole = 0
    for rank, name, state, files, file_count, size in rows:
        if state != "COMPLETE":
            assert state == "SYNCING" and files is None, (id, rank, name, state)
            continue
        files = json.loads(files)
        keys = dict(stack.sql("SELECT f->>'path', headrace.training_blob(:'a1', f) FROM jsonb_array_elements(:'a2') f",
                              training_jobs.PROJECT, json.dumps(files)))
        assert sorted(f["path"] for f in files) == ["base", "state.json", "weights"] and int(file_count) == 3, (id, name, files)
        assert int(size) == sum(f["size"] for f in files), (id, name)
        for file in files:
            data = (stack.data_dir / "blobs" / keys[file["path"]]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["digest"] and len(data) == file["size"], (id, name, file)
            if file["path"] == "state.json":
                assert json.loads(data)["step"] == int(name[5:]), (id, name, data)
        whole += 1
    return whole


def journal_of(stack):
    """What the scripts noted down, by job and rank: (placement, pid, time, word, step, trainer)."""
    found = collections.defaultdict(list)
    for path in stack.data_dir.glob("*/cache/projects/*/journal"):
        for line in path.read_text().splitlines():
            node, pid, when, word, step = line.split()
            id, placement, rank = node.rsplit("-", 2)
            found[id, int(rank)].append((int(placement), int(pid), float(when), word, int(step), "second" in path.parts))
    return found


def check_log(stack, id, rank, steps):
    """No number is missing or there twice (lines() looks), and each step was printed. How many were twice."""
    from training_jobs import lines

    said = lines(stack, id, rank)
    printed = [int(line.split()[1]) for line in said if line.startswith("step ")]
    assert set(printed) == set(range(1, steps + 1)), (id, rank, sorted(set(range(1, steps + 1)) - set(printed)))
    assert said[-1] == "over", said[-3:]
    # Within a placement steps follow each other: what is missing is a gap although numbers have none. What it goes on from
    # was printed before (of a gang perhaps by a placement before the last one).
    at = furthest = 0
    for line in said:
        furthest = max(furthest, at)
        if line.startswith("begins at "):
            begun = int(line.split()[2])
            assert begun <= furthest, (id, rank, "goes on from", begun, "behind", furthest)
            at = begun
        elif line.startswith("step "):
            assert int(line.split()[1]) == at + 1, (id, rank, line, at)
            at += 1
    return len(printed) - steps


def check_restarts(stack, id, notes):
    """Each placement goes on from the newest checkpoint that was complete when it was placed. How many steps are run
    again: those behind the last one saved, fewer than EVERY, and those that were saved and on their way."""
    placed = {int(n): float(at) for n, at in stack.sql(
        "SELECT placement, extract(epoch FROM placed_at) FROM headrace.training_node WHERE job_id = :'a1'", id)}
    complete = [(int(name[5:]), float(at)) for name, at in stack.sql(
        "SELECT name, extract(epoch FROM completed_at) FROM headrace.training_checkpoint WHERE job_id = :'a1' AND state = 'COMPLETE'", id)]
    told, last = collections.Counter(), 0
    for placement, _, when, word, step, _ in sorted(notes, key=lambda note: (note[0], note[2])):
        if word == "begins" and last > 0:
            newest = max((at for at, since in complete if since < placed[placement]), default=0)
            assert step >= newest, (id, placement, "goes on from", step, "and there was", newest)
            saved = last // EVERY * EVERY
            told["restarts"] += 1
            told["behind"] += last - max(saved, step)
            told["on their way"] += max(0, saved - step)
        last = step
    return told


def check(trainers, ids, gang, want, steps):
    from training_jobs import job, ledger

    told, stack = collections.Counter(), trainers.stack
    journal = journal_of(stack)
    for id, weights in zip(ids, want):
        ended = job(stack, id)
        assert ended["status"] == "COMPLETED", (id, ended)
        assert ledger(stack, id)[0] == "SUCCEEDED", (id, ledger(stack, id))
        ranks = (0, 1) if id == gang else (0,)
        assert final_weights(stack, id, steps) == weights and len(weights) == len(ranks), (id, final_weights(stack, id, steps), weights)
        told["manifests"] += check_manifests(stack, id)
        told["retries"] += int(ended["retry_count"])
        told["placements"] += int(ended["placement"])
        for rank in ranks:
            notes = journal[id, rank]
            processes = collections.defaultdict(set)
            for placement, pid, *_ in notes:
                processes[placement].add(pid)
            assert all(len(pids) == 1 for pids in processes.values()), (id, rank, processes)
            in_pause = [any(which == trainer and begin <= when <= end for which, begin, end in trainers.paused)
                        for _, _, when, word, _, trainer in notes if word == "step"]
            if id != gang:
                told["ran"] += len(in_pause)
                told["paused"] += in_pause.count(True)
                told["wanted"] += steps
                told += check_restarts(stack, id, notes)
            told["lines twice"] += check_log(stack, id, rank, steps)
    return told


def undisturbed(stack, steps):
    """Digests of the last weights of each rank, of each seed."""
    from training_jobs import push, wait_end

    def begin(seed):
        return push(stack, *commands(steps, 0, seed), node_count=2 if seed == 0 else 1)

    ids = [begin(seed) for seed in range(JOBS + 1)]
    for seed in range(JOBS + 1):
        for _ in range(UNDISTURBED_TRIES):
            ended = wait_end(stack, ids[seed], 600)
            if ended["retry_count"] == "0":
                break
            ids[seed] = begin(seed)  # a machine that stands still for a lease has disturbed it
        assert ended["status"] == "COMPLETED" and ended["retry_count"] == "0", ended
    return [final_weights(stack, id, steps) for id in ids]


def commands(steps, pause, seed):
    return f"cat > learn.py <<'EOF'\n{SCRIPT}\nEOF", f"python3 learn.py {steps} {pause} {EVERY} {seed}"


def refusals(stack):
    """Manifests and lines that were refused because their placement was over."""
    count = 0
    for name in ("trainer", "second"):
        for line in (stack.data_dir / f"logs/{name}.log").read_text(errors="replace").splitlines():
            count += "is over" in line and "checkpoint_not_sent" in line
    return count


def hurt(trainers, victims, dice, ids, log):
    """Disturbs somebody until all jobs are over. A job that five losses without a checkpoint would end has three at most:
    on a busy machine it begins too slowly for the next one."""
    from training_jobs import OPEN, job

    hits = collections.Counter()
    while any(job(trainers.stack, id)["status"] in OPEN for id in ids):
        time.sleep(dice.uniform(*GAP_S))
        if any(int(now["lost_count"]) >= LOST_MAX for now in (job(trainers.stack, id) for id in ids) if now["status"] in OPEN):
            hits["waits for a checkpoint"] += 1
            continue
        victim = dice.choices(victims, [VICTIMS[v] for v in victims])[0]
        if disturb(trainers, victim, dice):
            hits[victim] += 1
            log(f"{time.time():.1f} {victim}")
    return hits


def follow(stack, id, out):
    """`headrace train logs --follow` through all of it: what it prints."""
    told = stack.cli("train", "logs", id, "--follow", "--json", check=False, timeout=1800)
    out.append((told.returncode, told.stdout, told.stderr))


def run(options, bench):
    from stack import Stack, wait_until
    from training_jobs import Trainer, ledger, lines, project, push

    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    dice = random.Random(seed)
    steps = STEPS // 4 if options.small else STEPS
    victims = [v for v in options.parts.split(",") if v] or list(VICTIMS)
    if set(victims) - set(VICTIMS):
        sys.exit(f"bench/training-kills: --parts may name {', '.join(VICTIMS)}; not {', '.join(set(victims) - set(VICTIMS))}")
    print(f"seed {seed}: {JOBS} jobs of one node and a gang of two, {steps} steps of {PAUSE_S} s, a checkpoint each {EVERY}", flush=True)
    with Stack(trainer=True, env=ENV) as stack:
        project(stack)
        trainers = Trainers(stack, Trainer(stack, "second", **ENV).start())
        want = undisturbed(stack, steps)
        began = time.monotonic()
        gang = push(stack, *commands(steps, PAUSE_S, 0), node_count=2)
        ids = [gang] + [push(stack, *commands(steps, PAUSE_S, seed)) for seed in range(1, JOBS + 1)]
        followed = []
        follower = threading.Thread(target=follow, args=(stack, ids[1], followed), daemon=True)
        follower.start()
        hits = hurt(trainers, victims, dice, ids, lambda text: print(text, file=sys.stderr, flush=True))
        seconds = time.monotonic() - began
        for id in ids:
            wait_until("the ledger to say so", lambda id=id: ledger(stack, id)[0] not in ("QUEUED", "IN_PROGRESS"), 60)
        told = check(trainers, ids, gang, want, steps)
        follower.join(60)
        check_followed(followed, lines(stack, ids[1]))
        # A zombie's steps come beside those of who went on, and are not behind him.
        assert told["behind"] <= told["restarts"] * (EVERY - 1), told
        assert told["ran"] <= told["wanted"] + told["behind"] + told["on their way"] + told["paused"], told
        refused = refusals(stack)
        assert trainers.second.stop() == 0
    print(f"{seconds:.0f} s; " + ", ".join(f"{count} x {name}" for name, count in sorted(hits.items())))
    print(f"weights as undisturbed; steps run {told['ran']:,} of {told['wanted']:,}: again {told['behind']} behind the last checkpoint, "
          f"at most {EVERY - 1} for each of {told['restarts']} restarts, {told['on their way']} whose checkpoint was on its way, and of all "
          f"{told['paused']} by scripts whose trainer was stopped; each went on from the newest complete checkpoint; "
          f"placements {told['placements']}, whole manifests {told['manifests']}, none half; refused under a lost fence {refused}; "
          f"lines printed again by who went on {told['lines twice']}, none missing, none twice; a follower read each once", flush=True)


def check_followed(followed, said):
    assert followed, "the follower has not come to an end"
    code, out, err = followed[0]
    assert code == 0, (code, err)
    read = [json.loads(line)["message"] for line in out.splitlines()]
    assert read == said, (len(read), len(said), [(a, b) for a, b in zip(read, said) if a != b][:3])
