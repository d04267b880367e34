/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "workers/confine_int.h"
#include "workers/secret_files.h"

static const struct setting confine_rows[] = {
#define SETTINGS_ROWS struct confine_settings
#include "base/settings_rows.def"
#include "workers/confine_settings.def"
#include "base/settings_end.def"
};

static const struct settings_program confine_program = {
    .command = "confine",
    .operands = "PROGRAM ARGUMENT…",
    .purpose = "Runs a program where it can hurt only itself. Workers start user code this way; "
               "--explain says what is in force on this machine.",
    .rows = confine_rows,
    .row_count = COUNT_OF(confine_rows),
};

/* ---- levels ---- */

static const char *const level_names[] = {
    [CONFINE_AUTO] = "auto",
    [CONFINE_OFF] = "off",
    [CONFINE_BASIC] = "basic",
    [CONFINE_STRICT] = "strict",
};

int confine_level_parse(const char *text, enum confine_level *ret_level, struct err *err)
{
    for (size_t i = 0; i < COUNT_OF(level_names); i++) {
        if (strcmp(level_names[i], text) != 0)
            continue;
        *ret_level = (enum confine_level)i;
        return 0;
    }
    return err_set(err, ERR_USAGE, "isolation is '%.40s'; it is auto, strict, basic or off", text);
}

const char *confine_level_name(enum confine_level level)
{
    return level_names[level];
}

int confine_level_find(enum confine_level asked, enum confine_level *ret_level, struct err *err)
{
    struct err why;
    int r;

    if (asked == CONFINE_OFF || asked == CONFINE_BASIC) {
        *ret_level = asked;
        return 0;
    }
    r = confine_strict_try(&why);
    if (r < 0 && asked == CONFINE_STRICT) {
        *err = why;
        return r;
    }
    *ret_level = r < 0 ? CONFINE_BASIC : CONFINE_STRICT;
    return 0;
}

bool confine_basic_has_files(void)
{
    return confine_landlock_abi() > 0;
}

void confine_describe(enum confine_level level, const char *network, char *to, size_t to_size)
{
    int abi = confine_landlock_abi();
    unsigned group = confine_group_can();
    const char *files = level == CONFINE_STRICT ? "files of its own"
                        : abi > 0               ? "files by Landlock"
                                                : "files NOT confined (no Landlock)";
    const char *net = "network NOT confined";
    const char *count = group & CONFINE_GROUP_PROCESSES             ? "processes by cgroup"
                        : geteuid() != 0 && level == CONFINE_STRICT ? "processes by rlimit"
                                                                    : "processes NOT limited";

    if (level == CONFINE_OFF) {
        (void)snprintf(to, to_size, "off: a process group of its own, nothing else");
        return;
    }
    if (strcmp(network, "none") == 0)
        net = level == CONFINE_STRICT ? "no network" : "no connections";
    else if (strcmp(network, "out") == 0 && abi >= 4)
        net = "connections to few ports";
    (void)snprintf(to, to_size, "%s: %s, %s, system calls filtered, %s, memory %s",
                   level_names[level], files, net, count,
                   group & CONFINE_GROUP_MEMORY ? "by cgroup" : "by rlimit of each process");
}

/* ---- what is common to all levels ---- */

const char *const confine_system_paths[] = {
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/sys",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/lsb-release",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/timezone",
    NULL,
};

int confine_parts(const char *list, char separator, confine_part_call *each, void *opaque,
                  struct err *err)
{
    const char ends[] = {separator, '\0'};
    int r = 0;

    while (r == 0 && *list != '\0') {
        size_t size = strcspn(list, ends);
        OWNED(mem_free) char *part = xasprintf("%.*s", (int)size, list);

        if (size > 0)
            r = each(opaque, part, err);
        list += size + (list[size] == separator);
    }
    return r;
}

static bool env_passes(const char *variable)
{
    static const char *const prefixes[] = {
        "PATH=", "LANG=",   "LANGUAGE=", "LC_",  "TZ=",   "PORT=",     "LD_LIBRARY_PATH=",
        "CUDA_", "NVIDIA_", "NCCL_",     "OMP_", "MKL_",  "OPENBLAS_", "PYTHON",
        "HF_",   "ASAN_",   "UBSAN_",    "BT_",  "TRUSS_"};

    for (size_t i = 0; i < COUNT_OF(prefixes); i++) {
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return false;
}

/* What a model may see of our environment: nothing that could hold a secret or an address. What the
 * deployment itself sets comes later, from its host. */
static void env_filter(const char *home, const char *secrets)
{
    char **to = environ;

    for (char **at = environ; *at != NULL; at++) {
        if (env_passes(*at))
            *to++ = *at;
    }
    *to = NULL;
    (void)setenv(SECRET_FILES_VARIABLE, secrets, 1);
    (void)setenv("HOME", home, 0);
    (void)setenv("TMPDIR", strcmp(home, "/home/app") == 0 ? "/tmp" : home, 0);
    (void)setenv("USER", "app", 1);
    (void)setenv("LOGNAME", "app", 1);
    (void)setenv("APP_HOME", "/app", 0);
}

static void limit(enum __rlimit_resource resource, uint64_t value)
{
    struct rlimit now;
    struct rlimit wanted = {value, value};

    if (getrlimit(resource, &now) == 0 && now.rlim_max != RLIM_INFINITY && now.rlim_max < value)
        wanted.rlim_cur = wanted.rlim_max = now.rlim_max;
    (void)setrlimit(resource, &wanted);
}

/* held: what the cgroup takes care of. RLIMIT_AS breaks CUDA and torch, so memory without a cgroup
 * is each process' own data. RLIMIT_NPROC counts a user's processes, so it is set only where the
 * user is one of our own user namespace. */
static void set_limits(const struct confine_settings *settings, unsigned held, bool own_user)
{
    limit(RLIMIT_CORE, 0);
    if (settings->file_size_size > 0)
        limit(RLIMIT_FSIZE, settings->file_size_size);
    if (settings->memory_size > 0 && !(held & CONFINE_GROUP_MEMORY))
        limit(RLIMIT_DATA, settings->memory_size);
    if (settings->processes > 0 && own_user && !(held & CONFINE_GROUP_PROCESSES))
        limit(RLIMIT_NPROC, (uint64_t)settings->processes);
}

/* ---- the program ---- */

/* The keeper stays as it is: it has to be there in time. The kernel lets nobody who has no
 * capability take it back. A nice value divides time; who runs keeps the processor to the end of a
 * slice all the same, and a call of the platform wakes up several processes in a row. To SCHED_IDLE
 * each of them comes at once (Linux, kernel/sched/fair.c, check_preempt_wakeup_fair). */
static void set_nice(int64_t wanted)
{
    enum { NICE_LAST = 19 };
    static const struct sched_param none = {.sched_priority = 0};

    if (getpriority(PRIO_PROCESS, 0) < wanted)
        (void)setpriority(PRIO_PROCESS, 0, (int)wanted);
    if (wanted == NICE_LAST)
        (void)sched_setscheduler(0, SCHED_IDLE, &none);
}

/* Where Linux weighs sessions before nice values (autogroup, sched(7)), the session has a nice
 * value of its own. It takes one a tenth of a second from those without privileges, whoever they
 * are. */
static void set_session_nice(int64_t wanted)
{
    enum { TRIES = 5, PAUSE_MS = 50 };
    int fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    bool taken = false;
    char text[24];
    int size = snprintf(text, sizeof(text), "%lld", (long long)wanted);

    for (int i = 0; i < TRIES && fd >= 0 && !taken; i++) {
        taken = write(fd, text, (size_t)size) == size || errno != EAGAIN;
        if (!taken)
            (void)poll(NULL, 0, PAUSE_MS);
    }
    if (fd >= 0)
        (void)close(fd);
}

static int exec_program(const struct confine_settings *settings, char **argv, struct err *err)
{
    set_nice(settings->nice);
    (void)execvp(argv[0], argv);
    return err_set_errno(err, ERR_NOT_FOUND, "start '%.100s'", argv[0]);
}

/* Landlock and seccomp, then the program: in the sandbox, or, with a scratch folder, for want of
 * one. */
static int run_rules(const struct confine_settings *settings, const char *scratch, char **argv,
                     struct err *err)
{
    bool no_connect = strcmp(settings->network, "none") == 0;
    int r = confine_drop_capabilities(err);

    if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        r = err_set_errno(err, ERR_UNSUPPORTED, "give up new privileges");
    if (r == 0 && scratch != NULL)
        r = confine_files(settings, scratch, err);
    else if (r == 0 && settings->write[0] != '\0')
        r = confine_files_written(settings, err);
    if (r == 0 && strcmp(settings->network, "host") != 0)
        r = confine_network(settings, err);
    if (r == 0 && settings->filter)
        r = confine_calls(no_connect, settings->local && scratch == NULL, err);
    return r < 0 ? r : exec_program(settings, argv, err);
}

static int run_basic(const struct confine_settings *settings, char **argv, struct err *err)
{
    char scratch[] = "/tmp/headrace-scratch-XXXXXX", secrets[sizeof(scratch) + 8];
    const struct confine_kept kept = {.scratch = scratch, .container = ""};
    int r;

    set_limits(settings, confine_group_join(settings), false);
    if (mkdtemp(scratch) == NULL)
        return err_set_errno(err, ERR_IO, "make a scratch folder in /tmp");
    r = confine_keep(&kept, err);
    if (r < 0)
        return r;
    (void)snprintf(secrets, sizeof(secrets), "%s/secrets", scratch);
    env_filter(scratch, secrets);
    return run_rules(settings, scratch, argv, err);
}

/* Inside of bubblewrap, or around a host's own child. */
static int run_inner(const struct confine_settings *settings, char **argv, struct err *err)
{
    const struct confine_kept kept = {.container = ""};
    int r;

    set_limits(settings, 0, true);
    if (settings->own_session && settings->nice > 0)
        set_session_nice(settings->nice);
    r = confine_keep(&kept, err);
    return r < 0 ? r : run_rules(settings, NULL, argv, err);
}

static int run_off(const struct confine_settings *settings, char **argv, struct err *err)
{
    const struct confine_kept kept = {.container_program = settings->kept_by,
                                      .container = settings->kept_container};
    int r;

    limit(RLIMIT_CORE, 0);
    r = confine_keep(&kept, err);
    return r < 0 ? r : exec_program(settings, argv, err);
}

static int run_strict(const struct confine_settings *settings, char **argv, struct err *err)
{
    set_limits(settings, confine_group_join(settings), false);
    env_filter("/home/app", "/secrets");
    return confine_strict_exec(settings, argv, err);
}

/* Trying it takes as long as a sandbox does. */
static int level_of(const struct confine_settings *settings, enum confine_level asked,
                    enum confine_level *ret_level, struct err *err)
{
    if (!settings->tried || asked == CONFINE_AUTO)
        return confine_level_find(asked, ret_level, err);
    *ret_level = asked;
    return 0;
}

static int check_settings(const struct confine_settings *settings, enum confine_level *ret_level,
                          struct err *err)
{
    static const char *const networks[] = {"none", "out", "host"};
    enum confine_level asked;
    int r = confine_level_parse(settings->level, &asked, err);

    if (r < 0)
        return r;
    for (size_t i = 0; i < COUNT_OF(networks); i++) {
        if (strcmp(settings->network, networks[i]) == 0)
            return settings->inner ? 0 : level_of(settings, asked, ret_level, err);
    }
    return err_set(err, ERR_USAGE, "--network is '%.40s'; it is none, out or host",
                   settings->network);
}

static void explain(enum confine_level level)
{
    static const char *const networks[] = {"none", "out", "host"};
    char text[CONFINE_TEXT_SIZE];

    for (size_t i = 0; i < COUNT_OF(networks); i++) {
        confine_describe(level, networks[i], text, sizeof(text));
        (void)printf("network=%-5s %s\n", networks[i], text);
    }
    (void)printf("Landlock ABI %d (files from 1, ports from 4, sockets and signals from 6)\n",
                 confine_landlock_abi());
}

static int run(const struct confine_settings *settings, char **argv, struct err *err)
{
    enum confine_level level = CONFINE_OFF;
    int r = check_settings(settings, &level, err);

    if (r < 0)
        return r;
    if (settings->explain) {
        explain(level);
        return 0;
    }
    if (argv[0] == NULL)
        return err_set(err, ERR_USAGE, "no program is named");
    if (settings->inner)
        return run_inner(settings, argv, err);
    if (level == CONFINE_OFF)
        return run_off(settings, argv, err);
    return level == CONFINE_BASIC ? run_basic(settings, argv, err)
                                  : run_strict(settings, argv, err);
}

int confine_main(int argc, char **argv)
{
    const struct log_options options = {.program = "confine", .level = LOG_LEVEL_INFO};
    struct confine_settings settings = {0};
    enum settings_outcome outcome;
    struct err err;
    int operand, r;

    r = log_open(&options, &err);
    if (r == 0)
        r = settings_parse(&confine_program, argc, argv, &settings, &operand, &outcome, &err);
    if (r == 0 && outcome == SETTINGS_RUN)
        r = run(&settings, argv + operand, &err);
    settings_free(&confine_program, &settings);
    if (r == 0)
        return 0;
    log_error("confine_failed", LOG_ERR(&err));
    return CONFINE_EXIT;
}
