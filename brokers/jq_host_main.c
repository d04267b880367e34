/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace host-jq`: runs the expressions of one chain for a coordinator, or compiles them to see
 * whether they can be (brokers/jq.h starts it, never a person; brokers/jq_host.h is what is said).
 *
 * Expressions are users' programs, so it is made to be lost: no environment, no files, no network,
 * a filter that leaves it memory, its socket and its end; it looks every 10 ms of processor time at
 * what the request has taken, and ends by an exit code that says what was too much. What libjq does
 * not survive (no memory, a nest that is too deep) ends it by a signal.
 */

#include <errno.h>
#include <jansson.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/buf.h"
#include "brokers/jq_host.h"
#include "brokers/jq_program.h"

#define TICK_US 10000
#define ADDRESS_SPACE_MAX (2ull << 30)

int host_jq_main(int argc, char **argv);

/* ---- limits ---- */

static volatile uint64_t begun_us; /* processor time as the request came */

static uint64_t used_us(const struct rusage *usage)
{
    return 1000000 * (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) +
           (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
}

static void on_tick(int signal)
{
    struct rusage usage;

    (void)signal;
    if (getrusage(RUSAGE_SELF, &usage) < 0)
        return;
    if (usage.ru_maxrss > JQ_HOST_MEMORY_MB * 1024L)
        _exit(JQ_HOST_EXIT_MEMORY);
    if (used_us(&usage) - begun_us > JQ_HOST_CPU_MS * 1000ull)
        _exit(JQ_HOST_EXIT_CPU);
}

static void begin_request(void)
{
    struct rusage usage;

    if (getrusage(RUSAGE_SELF, &usage) == 0)
        begun_us = used_us(&usage);
}

static int limit_syscalls(void)
{
    static const int allowed[] = {SCMP_SYS(read),
                                  SCMP_SYS(write),
                                  SCMP_SYS(exit),
                                  SCMP_SYS(exit_group),
                                  SCMP_SYS(brk),
                                  SCMP_SYS(mmap),
                                  SCMP_SYS(munmap),
                                  SCMP_SYS(mremap),
                                  SCMP_SYS(madvise),
                                  SCMP_SYS(mprotect),
                                  SCMP_SYS(rt_sigreturn),
                                  SCMP_SYS(rt_sigprocmask),
                                  SCMP_SYS(rt_sigaction),
                                  SCMP_SYS(getrusage),
                                  SCMP_SYS(futex),
                                  SCMP_SYS(sigaltstack),
                                  SCMP_SYS(clock_gettime),
                                  SCMP_SYS(gettimeofday),
                                  SCMP_SYS(getpid),
                                  SCMP_SYS(gettid),
                                  SCMP_SYS(tgkill),
                                  SCMP_SYS(sched_yield),
                                  SCMP_SYS(restart_syscall),
                                  SCMP_SYS(getrandom),
                                  SCMP_SYS(writev)};
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int r = filter == NULL ? -1 : 0;

    for (size_t i = 0; i < COUNT_OF(allowed) && r == 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    if (r == 0)
        r = seccomp_load(filter);
    if (filter != NULL)
        seccomp_release(filter);
    return r;
}

static int limit_all(void)
{
    static const struct itimerval every = {{0, TICK_US}, {0, TICK_US}};
    const struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    const struct rlimit none = {0, 0};

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_CORE, &none);
#ifndef HEADRACE_WITH_ASAN /* its shadow is larger */
    const struct rlimit memory = {ADDRESS_SPACE_MAX, ADDRESS_SPACE_MAX};

    (void)setrlimit(RLIMIT_AS, &memory);
#endif
    if (sigaction(SIGPROF, &action, NULL) < 0 || setitimer(ITIMER_PROF, &every, NULL) < 0)
        return -1;
    return limit_syscalls();
}

/* ---- messages ---- */

static bool read_all(void *to, size_t size)
{
    uint8_t *at = to;

    while (size > 0) {
        ssize_t n = read(JQ_HOST_FD, at, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool write_all(const void *bytes, size_t size)
{
    const uint8_t *at = bytes;

    while (size > 0) {
        ssize_t n = write(JQ_HOST_FD, at, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static void put_u32(uint8_t to[4], size_t number)
{
    for (unsigned i = 0; i < 4; i++)
        to[i] = (uint8_t)(number >> 8 * i);
}

static bool receive(struct buf *to)
{
    uint8_t head[JQ_HOST_HEAD];
    size_t size = 0;
    uint8_t *room;

    buf_done(to);
    if (!read_all(head, sizeof(head)))
        return false;
    for (unsigned i = 0; i < 4; i++)
        size |= (size_t)head[i] << 8 * i;
    room = buf_reserve(to, size);
    if (room == NULL || !read_all(room, size))
        return false;
    buf_commit(to, size);
    return true;
}

static bool answer(const void *bytes, size_t size)
{
    uint8_t head[JQ_HOST_HEAD + 1];

    put_u32(head, size + 1);
    head[JQ_HOST_HEAD] = '+';
    return write_all(head, sizeof(head)) && write_all(bytes, size);
}

static bool refuse(size_t expression, const struct err *err)
{
    uint8_t head[JQ_HOST_HEAD + 5];

    put_u32(head, strlen(err->text) + 5);
    head[JQ_HOST_HEAD] = '-';
    put_u32(head + JQ_HOST_HEAD + 1, expression);
    return write_all(head, sizeof(head)) && write_all(err->text, strlen(err->text));
}

/* ---- work ---- */

/* Which of the expressions it is that does not compile, and why; err is of all together. */
static bool refuse_one(const json_t *each, struct err *err)
{
    size_t index;
    json_t *text;

    json_array_foreach(each, index, text)
    {
        OWNED(jq_program_close) struct jq_program *program = NULL;
        struct err of_one;

        if (jq_program_open(json_string_value(text), &program, &of_one) < 0)
            return refuse(index, &of_one);
    }
    return refuse(0, err);
}

static bool compile(const struct buf *message, struct jq_program **ret_program)
{
    json_t *root = json_loadb((const char *)message->bytes, message->size, 0, NULL);
    const char *text = json_string_value(json_object_get(root, "program"));
    struct err err;
    bool going;

    begin_request();
    if (text == NULL)
        return false;
    if (jq_program_open(text, ret_program, &err) == 0) {
        going = answer("", 0);
    } else {
        (void)refuse_one(json_object_get(root, "each"), &err);
        going = false;
    }
    json_decref(root);
    return going;
}

static bool work(struct jq_program *program, const struct buf *message)
{
    OWNED(buf_done) struct buf values = BUF_WITH_LIMIT(JQ_ANSWER_MAX);
    struct err err;

    begin_request();
    if (jq_program_run(program, (const char *)message->bytes, message->size, &values, &err) < 0)
        return refuse(0, &err);
    return answer(values.bytes, values.size);
}

/* Ends by _exit(): what a library does at the end of a process is not worth a system call. */
int host_jq_main(int argc, char **argv)
{
    struct buf message = BUF_WITH_LIMIT(JQ_HOST_REQUEST_MAX);
    struct jq_program *program = NULL;
    bool going;

    (void)argc;
    (void)argv;
    if (limit_all() < 0)
        return 1;
    going = receive(&message) && compile(&message, &program);
    while (going && receive(&message))
        going = work(program, &message);
    _exit(0);
}
