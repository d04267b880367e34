# SPDX-License-Identifier: Apache-2.0
#
# What the runs of examples/ share: a platform of their own, or with HEADRACE_URL or HEADRACE_CLIENT set
# the one that is named there (HEADRACE_BIN: the program to talk to it with); models pushed side by side;
# a chain pushed, run and drawn. Sourced, never run: callers have `set -euo pipefail` on, and give their
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
