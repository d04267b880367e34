/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Fault points: named steps of the protocol at which a test can hold a program of a real stack.
 *
 *     HEADRACE_FAULT_DIR=/dir headrace broker …
 *     touch /dir/broker_committed         the next broker that comes there stops itself (SIGSTOP)
 *     /dir/broker_committed.4711          …and this says which one
 *
 * A file arms its point once, for one process: whoever comes first renames it, adds its pid and
 * stops. What happens then is the test's affair: kill -9, SIGCONT after half a minute, SIGTERM, a
 * cut network, or the death of a server while the program stands exactly there. Nothing restarts
 * into the same fault, and points can be armed under load (tests/lib/chaos.py).
 *
 * Without the variable a point is one branch on a false bool. With it, and nothing armed, each
 * passage costs a failing rename(): for tests only. The points: brokers/fault_points.def.
 *
 * Thread: any.   Tests: tests/unit/test_fault.c, tests/stack/test_chaos.py
 */

#include <stdbool.h>

enum fault {
#define FAULT_POINT(name, program, text) FAULT_##name,
#include "brokers/fault_points.def"
#undef FAULT_POINT
    FAULT_COUNT
};

extern bool fault_enabled; /* set once, before there are threads */

/* Reads HEADRACE_FAULT_DIR and says on standard error that it is set. */
void fault_open(void);

/* For tests: from this directory, NULL: off. */
void fault_set_directory(const char *directory);

const char *fault_name(enum fault point);

void fault_stop(enum fault point); /* stops here if it is armed */

static inline void fault_point(enum fault point)
{
    if (__builtin_expect(fault_enabled, 0))
        fault_stop(point);
}
