# SPDX-License-Identifier: Apache-2.0
#
# What the runs of examples/ share: a platform of their own, or with HEADRACE_URL or HEADRACE_CLIENT set
# the one that is named there (HEADRACE_BIN: the program to talk to it with; HEADRACE_DEV_DIR: where it is a
# `headrace dev`, its data directory); models pushed side by side; a chain pushed, run and drawn; a training
# job queued, killed and deployed. Sourced, never run: callers have `set -euo pipefail` on, and give their
# arguments to example_begin, which leaves those that it does not know in args.

example=$(cd "$(dirname "$0")" && pwd)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

example_end() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    [ "$code" = 0 ] || [ "$code" = 130 ] || show_logs
    rm -rf "$work"
    stop_platform
    [ "$code" = 0 ] || printf '%s: failed: %s\n' "$(basename "$example")" "$step"
    exit "$code"
}

example_begin() {
    take_data_dir "$@"
    keep=no
    step="look at the machine"
    . scripts/platform.sh
    work=$(mktemp -d "$data_dir/example.XXXXXX")
    trap example_end EXIT
    trap 'exit 130' INT TERM
    if [ -z "${HEADRACE_URL:-}${HEADRACE_CLIENT:-}" ]; then
        prepare_platform
        start_platform
        export HEADRACE_CLIENT=$run_dir/client.json
    fi
    binary=${HEADRACE_BIN:-$binary}
    dev_dir=${HEADRACE_DEV_DIR:-$run_dir}
}

pushes=()

# push_model NAME DIRECTORY: begins; wait_models waits for all of them.
push_model() {
    "$binary" push "$2" --name "$1" >"$work/push-$1.out" 2>&1 &
    pushes+=("$1=$!")
}

wait_models() {
    local push
    for push in "${pushes[@]}"; do
        step="push the model ${push%=*}"
        say "waiting for the model ${push%=*}"
        wait "${push#*=}" || { cat "$work/push-${push%=*}.out" >&2; exit 1; }
    done
    pushes=()
}

# run_chain NAME INPUT-FILE: pushes the example's chain, runs it, prints its output and draws the run.
run_chain() {
    step="push the chain $1"
    "$binary" chains push "$example/chain.yaml" --name "$1" >/dev/null 2>"$work/push" || { cat "$work/push" >&2; exit 1; }
    step="run the chain $1"
    "$binary" chains run "$1" --quiet --input "@$2" 2>"$work/run" >"$work/output" || { cat "$work/run" >&2; exit 1; }
    "$binary" chains runs "$1" --json >"$work/runs"
    python3 -m json.tool --no-ensure-ascii "$work/output"
    say "the run"
    "$binary" chains show "$(python3 -c 'import json, sys
print(json.load(open(sys.argv[1]))["chain_runs"][0]["id"])' "$work/runs")"
}

# push_training FOLDER [OPTION…]: queues the training job of a folder; its id is left in job.
push_training() {
    step="push the training job"
    "$binary" train push "$@" --json >"$work/job" 2>"$work/push" || { cat "$work/push" >&2; exit 1; }
    job=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["id"])' "$work/job")
    say "training job $job"
}

# Prints what it says, but for its figures, until it is over. wait_training waits for that.
follow_training() {
    "$binary" train logs "$job" --follow > >(sed -u '/headrace_metric/d; s/^/   /') 2>/dev/null &
    follower=$!
}

training_status() {
    "$binary" train view "$job" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["current_status"])'
}

# wait_checkpoints COUNT: until so many are complete.
wait_checkpoints() {
    local count
    step="wait for $1 checkpoints"
    for _ in $(seq 200); do
        count=$("$binary" train checkpoints "$job" | grep -c ' COMPLETE ' || true)
        [ "$count" -lt "$1" ] || return 0
        kill -0 "$follower" 2>/dev/null || die "the training job is $(training_status) with $count checkpoints"
        sleep 0.3
    done
    die "$count checkpoints after a minute"
}

# Prints the process of the training job, the last of those that it began with (a shell is one as well).
training_process() {
    python3 - "$job" <<'END'
import pathlib, sys

found = []
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if f"BT_TRAINING_JOB_ID={sys.argv[1]}".encode() in (path / "environ").read_bytes().split(b"\0"):
            found.append(int(path.name))
    except OSError:
        pass
print(max(found, default=""))
END
}

# kill -9 of the process that trains, unless it is over by then.
kill_training() {
    local process
    step="kill the training process"
    for _ in $(seq 100); do
        process=$(training_process)
        [ -z "$process" ] || break
        kill -0 "$follower" 2>/dev/null || { say "it is over already"; return; }
        sleep 0.1
    done
    [ -n "$process" ] || die "no process of the training job is on this machine"
    say "kill -9 $process, the training process"
    kill -9 "$process"
}

# kill -9 of the whole trainer, which begins anew; where no `headrace dev` is known, of the training process.
kill_trainer() {
    [ -d "$dev_dir" ] || { kill_training; return; }
    step="kill the trainer"
    say "kill -9 of the trainer"
    "$binary" dev --data "$dev_dir" --kill trainer >/dev/null
    for _ in $(seq 100); do
        "$binary" dev --data "$dev_dir" --start trainer >/dev/null 2>"$work/start" && return
        sleep 0.1
    done
    cat "$work/start" >&2
    exit 1
}

wait_training() {
    local status
    step="wait for the training job"
    wait "$follower"
    status=$(training_status)
    [ "$status" = TRAINING_JOB_COMPLETED ] || die "the training job is $status: $("$binary" train view "$job" | tail -n 5)"
}

# deploy_training NAME: a deployment of the newest checkpoint, and what it was made of.
deploy_training() {
    step="deploy the checkpoint"
    "$binary" train deploy "$job" --model "$1"
    [ ! -f "$dev_dir/client.json" ] || env -u HEADRACE_URL "$binary" sql --client "$dev_dir/client.json" "select model, checkpoint, project, training_job_id, left(code_digest, 12) as code
        from training_lineage where training_job_id = '$job'"
}
