# SPDX-License-Identifier: Apache-2.0
#
# What the install and test scripts share: how they speak, retry, and find a Java.
# Sourced, never run. Callers have `set -euo pipefail` on.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One step: plain lines, because the reader may be a log file.
say() { printf '== %s\n' "$*"; }

# The last line of a failed run says what failed. Exit codes: 1 it broke, 2 something is missing.
die() {
    printf 'error: %s\n' "$*" >&2
    exit "${die_code:-1}"
}
die_missing() { die_code=2 die "$@"; }

# Runs a command up to four times with growing waits: registries and mirrors fail now and then.
retry() {
    local try
    for try in 1 2 3 4; do
        if "$@"; then return 0; fi
        [ "$try" = 4 ] || { say "try $try of 4 failed: $*; next in $((try * 3)) s"; sleep $((try * 3)); }
    done
    return 1
}

# Takes --data DIR out of "$@": leaves data_dir (absolute), deps_dir and the rest in args.
# HEADRACE_DEPS moves the downloads alone, so that several clones may share one copy.
take_data_dir() {
    data_dir=$root/.headrace
    args=()
    while [ $# -gt 0 ]; do
        case $1 in
        --data) [ $# -ge 2 ] || die "--data needs a directory"; data_dir=$2; shift 2 ;;
        --data=*) data_dir=${1#--data=}; shift ;;
        *) args+=("$1"); shift ;;
        esac
    done
    mkdir -p "$data_dir"
    data_dir=$(cd "$data_dir" && pwd)
    deps_dir=${HEADRACE_DEPS:-$data_dir/deps}
    mkdir -p "$deps_dir"
}

java_major() { "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }

# Prints the first Java of at least version 17: JAVA_HOME, PATH, then where Debian puts them.
find_java() {
    local java major
    for java in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)" \
        /usr/lib/jvm/java-17-openjdk-*/bin/java /usr/lib/jvm/java-*/bin/java; do
        [ -x "$java" ] || continue
        major=$(java_major "$java")
        if [ -n "$major" ] && [ "$major" -ge 17 ]; then
            printf '%s\n' "$java"
            return 0
        fi
    done
    return 1
}

# Prints the directory of the newest PostgreSQL server of at least version 15.
find_postgres() {
    local dir
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rn) \
        "$(pg_config --bindir 2>/dev/null || true)"; do
        [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] || continue
        if [ "$("$dir/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -ge 15 ]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done
    return 1
}

# Megabytes free where the data goes, and of memory; refused early, with the figure.
need_space() {
    local disk_mb memory_mb
    disk_mb=$(df -Pm "$data_dir" | awk 'NR == 2 { print $4 }')
    memory_mb=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    [ "$disk_mb" -ge "$1" ] ||
        die_missing "$data_dir has $disk_mb MB free and this needs $1 MB; --data DIR names another place"
    [ "$memory_mb" -ge "$2" ] || die_missing "$memory_mb MB of memory are free and this needs $2 MB"
}

# One run at a time in one data directory; a second one says that it waits.
lock_data_dir() {
    exec 9>"$data_dir/lock"
    if ! flock -n 9; then
        say "another ./demo or ./check works in $data_dir: waiting up to 30 minutes for it"
        flock -w 1800 9 || die "another ./demo or ./check still holds $data_dir/lock"
    fi
}

# configure PRESET [OPTION…]: runs cmake quietly, and anew where a clone was moved or copied.
configure() {
    local preset=$1 cache=$root/build/$1/CMakeCache.txt
    shift
    if [ -f "$cache" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$cache"; then
        say "the build in build/$preset belongs to another place: starting it anew"
        rm -rf "${root:?}/build/$preset"
    fi
    cmake -S "$root" --preset "$preset" "$@" >"$data_dir/cmake.log" 2>&1 || {
        cat "$data_dir/cmake.log" >&2
        die "cmake --preset $preset failed"
    }
}
