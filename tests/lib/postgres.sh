#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a program with a Postgres server of its own: postgres.sh PROGRAM [ARG…]
#
# Makes a cluster in a temporary directory, starts it on a free loopback port with a random
# password, puts its address into HEADRACE_POSTGRES and its pid into HEADRACE_POSTGRES_PID, runs
# the program, stops the server, removes the directory and ends with the program's status.
# Postgres refuses to run as root: as root it runs in a user namespace that maps us to another uid.
set -eu

bindir=$(pg_config --bindir 2>/dev/null || true)
for dir in "$bindir" $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t/ -k5 -rn); do
    [ -x "$dir/initdb" ] && bindir=$dir && break
done
[ -x "$bindir/initdb" ] || { echo "postgres.sh: no initdb found; install postgresql-15" >&2; exit 2; }

# The temporary directory is not under TMPDIR's long path: nothing here uses a Unix socket.
dir=$(mktemp -d "${TMPDIR:-/tmp}/headrace-pg.XXXXXX")
unprivileged=
# initdb looks its own uid up, so it must be one that has a name.
uid=$(id -u postgres 2>/dev/null || id -u daemon)
[ "$(id -u)" = 0 ] && unprivileged="unshare -U --map-user=$uid --map-group=$uid --"
pid=
finish() {
    status=$?
    trap - EXIT INT TERM
    [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true
    rm -rf "$dir"
    exit $status
}
trap finish EXIT INT TERM

export LC_ALL=C.UTF-8
(umask 077 && od -An -N12 -tx1 /dev/urandom | tr -d ' \n' >"$dir/password")
$unprivileged "$bindir/initdb" -D "$dir/data" -U headrace -A scram-sha-256 --pwfile="$dir/password" \
    --locale=C.UTF-8 -E UTF8 --no-sync >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; exit 2; }

# There is no standby: a session that asks for synchronous_commit=on waits in COMMIT, after it has
# committed, until it is killed. So a test can lose a commit's answer. The others commit locally.
# A port that was free a moment ago may be taken by now: try a few.
for attempt in 1 2 3 4 5; do
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    $unprivileged "$bindir/postgres" -D "$dir/data" -c listen_addresses=127.0.0.1 -c port="$port" \
        -c unix_socket_directories= -c fsync="${HEADRACE_TEST_FSYNC:-off}" -c timezone=UTC \
        -c max_connections=50 -c log_timezone=UTC \
        -c synchronous_standby_names=nobody -c synchronous_commit=local ${HEADRACE_TEST_POSTGRES_OPTIONS:-} \
        >"$dir/postgres.log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        "$bindir/pg_isready" -q -h 127.0.0.1 -p "$port" && break 2
        sleep 0.05
    done
    wait "$pid" || true
    pid=
done
[ -n "$pid" ] || { cat "$dir/postgres.log" >&2; exit 2; }

HEADRACE_POSTGRES="postgresql://headrace:$(cat "$dir/password")@127.0.0.1:$port/postgres"
HEADRACE_POSTGRES_PID=$pid
HEADRACE_POSTGRES_LOG=$dir/postgres.log
export HEADRACE_POSTGRES HEADRACE_POSTGRES_PID HEADRACE_POSTGRES_LOG
status=0
"$@" || status=$?
[ "$status" = 0 ] || [ "$status" = 77 ] || [ -z "${HEADRACE_TEST_SERVER_LOG:-}" ] || cat "$dir/postgres.log" >&2
exit $status
