# SPDX-License-Identifier: Apache-2.0
#
# A platform of one's own on this machine, for ./demo and the examples: in a directory of its own below
# data_dir, on free loopback ports, and ended with whoever started it. Sourced after lib.sh and
# take_data_dir, never run. keep=yes leaves it running.

run_dir=$data_dir/run-$$
dev_pid=
binary=$root/build/release/bin/headrace

# What is missing on this machine, and the program itself.
prepare_platform() {
    need_space 3000 1500
    lock_data_dir
    step="install the packages"
    scripts/deps demo
    step="fetch Kafka"
    scripts/kafka/fetch --data "$data_dir"
    step="build"
    say "building"
    configure release -DHEADRACE_TESTS=OFF
    ninja -C build/release --quiet
}

# The ends of the logs, taken before stopping adds lines of its own.
show_logs() {
    local log
    for log in "$run_dir"/dev.out "$run_dir"/logs/*.log; do
        [ -s "$log" ] || continue
        printf -- '--- the end of %s\n' "$log" >&2
        tail -n 6 "$log" | cut -c1-400 >&2
    done
}

start_platform() {
    step="start the platform"
    # A killed run leaves its directory, never a process; one that was kept holds its lock.
    for old in "$data_dir"/run-*; do
        [ ! -d "$old" ] || flock -n "$old/dev.lock" true 2>/dev/null && rm -rf "$old"
    done
    mkdir -m 700 "$run_dir"
    say "starting Kafka, Redis, PostgreSQL and Headrace in $run_dir"
    # Of its own session, so that Ctrl-C reaches only us; and the kernel tells it when we die, be
    # it by kill -9. One that is to be kept outlives us.
    local tell=(setpriv --pdeathsig TERM --)
    [ "$keep" = no ] || tell=()
    setsid "${tell[@]}" "$binary" dev --data "$run_dir" --deps "$deps_dir" </dev/null >"$run_dir/dev.out" 2>&1 9>&- &
    dev_pid=$!
    for _ in $(seq 1200); do
        if grep -q 'ready after' "$run_dir/dev.out"; then
            sed 's/^/   /; s#\(postgresql://[^:]*:\)[^@]*@#\1***@#; s/API key [^,]*/API key ***/' "$run_dir/dev.out"
            return
        fi
        kill -0 "$dev_pid" 2>/dev/null || die "the platform did not start"
        sleep 0.1
    done
    die "the platform was not ready after two minutes"
}

# Children of dev end with dev, even by kill -9.
stop_platform() {
    if [ -n "$dev_pid" ]; then
        say "stopping everything"
        kill -TERM "$dev_pid" 2>/dev/null || true
        wait "$dev_pid" 2>/dev/null || true
    fi
    rm -rf "$run_dir"
}

tell_kept() {
    say "left running; its files are in $run_dir"
    say "use it:  $binary $1 --client $run_dir/client.json"
    say "stop it: $binary dev --down --data $run_dir"
}
