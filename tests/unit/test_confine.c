/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what runs under `headrace confine` can do what a model needs and nothing else, at each
 * level that this machine has; and none of it is left when its starter or its first process ends.
 * Method: this binary again as `headrace confine`, with scripts of /bin/sh and the system's python3
 * in it. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/loop.h"
#include "base/mem.h"
#include "tests/unit/processes.h"
#include "workers/child.h"
#include "workers/confine.h"

#define ARGS_MAX 24
#define SAID_SIZE 8192

struct world {
    char folder[64]; /* secret/key, model/weights, out/ */
    char said[SAID_SIZE];
    int port; /* somebody listens on 127.0.0.1 */
    int listener, unix_listener, unix_packets;
};

static void file_make(const struct world *world, const char *name, const char *text)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", world->folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    (void)close(fd);
}

static void folder_make(const struct world *world, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", world->folder, name);

    assert_int_equal(mkdir(path, 0755), 0);
}

static int world_open(void **state)
{
    static struct world world;
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(address);

    world = (struct world){0};
    *state = &world;
    mem_copy_text(world.folder, "/var/tmp/headrace-confine-XXXXXX");
    if (mkdtemp(world.folder) == NULL || chmod(world.folder, 0755) < 0)
        return -1;
    folder_make(&world, "secret");
    folder_make(&world, "model");
    folder_make(&world, "out");
    file_make(&world, "secret/key", "s3cret\n");
    file_make(&world, "model/weights", "weights\n");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    world.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(world.listener, (struct sockaddr *)&address, size) < 0 ||
        listen(world.listener, 8) < 0 ||
        getsockname(world.listener, (struct sockaddr *)&address, &size) < 0)
        return -1;
    world.port = ntohs(address.sin_port);
    (void)snprintf(local.sun_path, sizeof(local.sun_path), "%s/secret/sock", world.folder);
    world.unix_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(world.unix_listener, (struct sockaddr *)&local, sizeof(local)) < 0 ||
        listen(world.unix_listener, 8) < 0)
        return -1;
    (void)snprintf(local.sun_path, sizeof(local.sun_path), "%s/secret/sock.d", world.folder);
    world.unix_packets = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return bind(world.unix_packets, (struct sockaddr *)&local, sizeof(local));
}

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *where)
{
    (void)about, (void)type, (void)where;
    return remove(path);
}

static int world_close(void **state)
{
    struct world *world = *state;

    (void)close(world->listener);
    (void)close(world->unix_listener);
    (void)close(world->unix_packets);
    return nftw(world->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- running ---- */

static pid_t start(const struct world *world, const char *const *more, const char *script,
                   const int fds[2])
{
    OWNED(mem_free) char *app = xasprintf("--app=%s/model", world->folder);
    OWNED(mem_free) char *write = xasprintf("--write=%s/out", world->folder);
    const char *args[ARGS_MAX] = {"headrace", "confine", app, write};
    size_t count = 4;
    pid_t pid;

    while (*more != NULL)
        args[count++] = *more++;
    args[count++] = "--";
    args[count++] = "/bin/sh";
    args[count++] = "-c";
    args[count] = script;
    pid = fork();
    if (pid != 0)
        return pid;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)dup2(fds[1], STDOUT_FILENO);
    (void)dup2(fds[1], STDERR_FILENO);
    (void)close(fds[0]);
    (void)close(fds[1]);
    (void)execv("/proc/self/exe", (char *const *)args);
    _exit(1);
}

/* Runs a script to its end; its exit code, and what it said in world->said. */
static int run(struct world *world, const char *const *more, const char *script)
{
    size_t size = 0;
    int fds[2], status;
    ssize_t n;
    pid_t pid;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    pid = start(world, more, script, fds);
    (void)close(fds[1]);
    while ((n = read(fds[0], world->said + size, SAID_SIZE - 1 - size)) > 0)
        size += (size_t)n;
    world->said[size] = '\0';
    (void)close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void want_said(const struct world *world, const char *text)
{
    if (strstr(world->said, text) == NULL)
        fail_msg("'%s' is not in '%s'", text, world->said);
}

static bool has_strict(void)
{
    enum confine_level level;
    struct err err;

    return confine_level_find(CONFINE_AUTO, &level, &err) == 0 && level == CONFINE_STRICT;
}

/* ---- tests ---- */

static void test_exit_codes_and_signals_pass(void **state)
{
    static const char *const levels[] = {"--level=off", "--level=basic", "--level=auto", "--inner"};
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        const char *const more[] = {levels[i], NULL};

        assert_int_equal(run(world, more, "echo said; exit 7"), 7);
        want_said(world, "said");
        assert_true(run(world, more, "kill -9 $$") != 0);
    }
}

static void test_the_platform_comes_first(void **state)
{
    static const char *const levels[] = {"--level=off", "--level=basic", "--level=auto", "--inner"};
    int mine = getpriority(PRIO_PROCESS, 0);
    int wanted = mine < 0 ? 0 : mine < 19 ? mine + 1 : 19;
    OWNED(mem_free) char *more_nice = xasprintf("--nice=%d", wanted);
    OWNED(mem_free) char *lower = xasprintf("nice %d\n", wanted);
    OWNED(mem_free) char *still = xasprintf("still %d\n", wanted);
    OWNED(mem_free) char *same = xasprintf("nice %d\n", mine < 0 ? 0 : mine);

    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        const char *const more[] = {levels[i], more_nice, NULL};
        const char *const none[] = {levels[i], NULL};

        /* What has no capability cannot take it back; at `off` it has ours. */
        assert_int_equal(run(*state, more,
                             i == 0 ? "echo nice $(nice); echo still $(nice)"
                                    : "echo nice $(nice); nice -n -5 sh -c "
                                      "'echo still $(nice)'"),
                         0);
        want_said(*state, lower);
        want_said(*state, still);
        assert_int_equal(run(*state, none, "echo nice $(nice)"), 0);
        want_said(*state, same);
    }
}

static void try_files(struct world *world, const char *level)
{
    const char *const more[] = {level, NULL};
    OWNED(mem_free)
    char *script = xasprintf("D=%s; cat $D/model/weights; echo mine >$D/out/answer && echo wrote; "
                             "echo x >$TMPDIR/x && echo scratch; ls $D/secret; cat $D/secret/key; "
                             "cat /etc/shadow; echo x >$D/model/new; echo x >/usr/new; "
                             "cat /proc/%d/environ | wc -c; true",
                             world->folder, (int)getpid());

    assert_int_equal(run(world, more, script), 0);
    want_said(world, "weights\nwrote\nscratch\n");
    assert_null(strstr(world->said, "s3cret"));
    assert_null(strstr(world->said, "root:"));
    assert_int_equal(access("/usr/new", F_OK), -1);
    assert_null(strstr(world->said, "key\n")); /* not even the name */
}

/* At 19 it also keeps no processor that somebody else wakes up for. */
static void test_idle_policy(void **state)
{
    static const char *const levels[] = {"--level=off", "--level=basic", "--level=auto", "--inner"};

    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        const char *const last[] = {levels[i], "--nice=19", NULL};
        const char *const before[] = {levels[i], "--nice=18", NULL};

        assert_int_equal(run(*state, last, "echo policy $(cut -d ' ' -f 41 /proc/self/stat)"), 0);
        want_said(*state, "policy 5\n"); /* SCHED_IDLE */
        assert_int_equal(run(*state, before, "echo policy $(cut -d ' ' -f 41 /proc/self/stat)"), 0);
        want_said(*state, "policy 0\n");
    }
}

static void test_sessions_own_nice_value(void **state)
{
    const char *const strict[] = {"--level=strict", "--nice=7", NULL};
    const char *said;

    if (!has_strict() || access("/proc/self/autogroup", W_OK) < 0)
        skip();
    assert_int_equal(run(*state, strict,
                         "cat /proc/self/autogroup; echo 0 >/proc/self/autogroup; "
                         "echo still; cat /proc/self/autogroup"),
                     0);
    assert_non_null(strstr(((struct world *)*state)->said, " nice 7\n"));
    said = strstr(((struct world *)*state)->said, "still\n");
    assert_non_null(said);
    assert_non_null(strstr(said, " nice 7\n"));
}

static void test_files(void **state)
{
    struct world *world = *state;

    if (confine_basic_has_files())
        try_files(world, "--level=basic");
    if (has_strict())
        try_files(world, "--level=strict");
}

static void try_network(struct world *world, const char *level, const char *network)
{
    const char *const more[] = {level, network, NULL};
    OWNED(mem_free)
    char *script = xasprintf("exec /usr/bin/python3 -c '\n"
                             "import socket\n"
                             "def attempt(family, address):\n"
                             "    try:\n"
                             "        socket.socket(family).connect(address)\n"
                             "        return \"connected\"\n"
                             "    except OSError as error:\n"
                             "        return type(error).__name__\n"
                             "print(\"tcp\", attempt(socket.AF_INET, (\"127.0.0.1\", %d)))\n"
                             "print(\"unix\", attempt(socket.AF_UNIX, \"%s/secret/sock\"))\n"
                             "server = socket.create_server((\"127.0.0.1\", 0))\n"
                             "print(\"listens\")\n'",
                             world->port, world->folder);

    assert_int_equal(run(world, more, script), 0);
    want_said(world, "listens");
    assert_null(strstr(world->said, "tcp connected"));
    assert_null(strstr(world->said, "unix connected"));
}

static void test_network(void **state)
{
    char text[CONFINE_TEXT_SIZE];

    try_network(*state, "--level=basic", "--network=none");
    if (has_strict())
        try_network(*state, "--level=strict", "--network=none");
    confine_describe(CONFINE_BASIC, "out", text, sizeof(text));
    if (strstr(text, "few ports") == NULL)
        return; /* this kernel cannot, and it is said */
    try_network(*state, "--level=basic", "--network=out");
    if (has_strict())
        try_network(*state, "--level=strict", "--network=out");
}

/* Every way that was found to get past the rules, and the plain ones: what succeeds is what is
 * documented, and nothing else. */
static void test_attacks(void **state)
{
    static const struct {
        const char *level, *network, *allowed; /* in the order of attacks.py */
    } rows[] = {
        {"--level=strict", "none", "ALLOWED bind\nALLOWED bind6\nALLOWED udp\n"},
        {"--level=strict", "out", "ALLOWED udp\n"},
        {"--level=basic", "none", ""},
        {"--level=basic", "out", "ALLOWED udp\n"},
    };
    struct world *world = *state;
    char cwd[PATH_MAX / 2], text[CONFINE_TEXT_SIZE];

    confine_describe(CONFINE_BASIC, "out", text, sizeof(text));
    if (strstr(text, "few ports") == NULL)
        skip(); /* it is said that this kernel lets some of it through */
    assert_non_null(getcwd(cwd, sizeof(cwd)));
    for (size_t i = has_strict() ? 0 : 2; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *network = xasprintf("--network=%s", rows[i].network);
        OWNED(mem_free) char *read = xasprintf("--read=%s/tests/lib", cwd);
        const char *const more[] = {rows[i].level, network, read, NULL};
        OWNED(mem_free)
        char *script = xasprintf(
            "/usr/bin/python3 -IS %s/tests/lib/attacks.py %d %s/secret/sock %d >out; "
            "wc -l <out; grep ALLOWED out; true",
            cwd, world->port, world->folder, (int)getpid());
        OWNED(mem_free) char *there = xasprintf("cd $TMPDIR; %s", script);
        OWNED(mem_free) char *wanted = xasprintf("34\n%s", rows[i].allowed);

        assert_int_equal(run(world, more, there), 0);
        assert_string_equal(world->said, wanted);
    }
}

static void test_calls_and_environment(void **state)
{
    static const char *const levels[] = {"--level=basic", "--level=strict"};
    struct world *world = *state;

    assert_int_equal(setenv("HEADRACE_POSTGRES", "postgresql://user:pass@host/", 1), 0);
    assert_int_equal(setenv("AWS_SECRET_ACCESS_KEY", "pass", 1), 0);
    for (size_t i = 0; i < (has_strict() ? 2u : 1u); i++) {
        const char *const more[] = {levels[i], NULL};

        assert_int_equal(
            run(world, more,
                "env; unshare -U true && echo unshared; grep CapEff /proc/self/status; "
                "/usr/bin/python3 -c 'import socket; socket.socket(40)'; ulimit -c"),
            0);
        assert_null(strstr(world->said, "pass"));
        assert_null(strstr(world->said, "unshared"));
        want_said(world, "CapEff:\t0000000000000000");
        want_said(world, "not supported"); /* a socket of a family that no model needs */
        want_said(world, "\n0\n");
    }
}

static void test_a_fork_bomb_ends_at_its_limit(void **state)
{
    struct world *world = *state;
    OWNED(mem_free) char *name = xasprintf("test-bomb-%d", (int)getpid());
    OWNED(mem_free) char *group = xasprintf("--group=%s", name);
    const char *const more[] = {"--processes=50", group, NULL};
    char text[CONFINE_TEXT_SIZE];
    enum confine_level level;
    struct err err;

    assert_int_equal(confine_level_find(CONFINE_AUTO, &level, &err), 0);
    confine_describe(level, "none", text, sizeof(text));
    if (strstr(text, "processes NOT limited") != NULL)
        skip();
    assert_int_equal(run(world, more,
                         "exec /usr/bin/python3 -c '\n"
                         "import os, time\n"
                         "made = 0\n"
                         "try:\n"
                         "    while made < 10000:\n"
                         "        if os.fork() == 0:\n"
                         "            time.sleep(77003)\n"
                         "        made += 1\n"
                         "except OSError as error:\n"
                         "    print(type(error).__name__, made < 60)\n'"),
                     0);
    want_said(world, "BlockingIOError True");
    (void)confine_group_end(name);
}

static void test_memory_over_the_limit(void **state)
{
    struct world *world = *state;
    OWNED(mem_free) char *name = xasprintf("test-memory-%d", (int)getpid());
    OWNED(mem_free) char *group = xasprintf("--group=%s", name);
    const char *const more[] = {"--memory=64MiB", group, NULL};
    int code = run(world, more,
                   "/usr/bin/python3 -c 'print(len(b\"m\" * (400 << 20)))'; echo code $?");

    assert_null(strstr(world->said, "419430400"));
    assert_null(strstr(world->said, "code 0"));
    (void)code;
    (void)confine_group_end(name);
    assert_false(confine_group_end(name)); /* it is gone */
}

static void test_nothing_is_left(void **state)
{
    static const char *const levels[] = {"--level=off", "--level=basic", "--level=auto"};
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        const char *const more[] = {levels[i], NULL};
        int fds[2], status;
        char byte;
        pid_t pid;

        /* Its first process ends, and what it left behind with it. */
        assert_int_equal(run(world, more, "(setsid sleep 77004 & sleep 77004 &) >/dev/null 2>&1"),
                         0);
        want_sleeper("77004", false);
        /* It is told to end: the signal that the kernel sends when its starter dies. */
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid = start(world, more, "setsid sleep 77005 & echo; sleep 77005", fds);
        (void)close(fds[1]);
        assert_int_equal(read(fds[0], &byte, 1), 1);
        want_sleeper("77005", true);
        assert_int_equal(kill(pid, CONFINE_END_SIGNAL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        (void)close(fds[0]);
        want_sleeper("77005", false);
    }
}

static bool group_is_there(const char *group)
{
    static const char *const trees[] = {"", "/memory", "/pids"};
    bool found = false;

    for (size_t i = 0; i < COUNT_OF(trees); i++) {
        OWNED(mem_free) char *path = xasprintf("/sys/fs/cgroup%s/headrace/%s", trees[i], group);

        found = found || access(path, F_OK) == 0;
    }
    return found;
}

/* A keeper that was stopped hears what it is told as soon as it may, and that is at once. */
static void test_a_stopped_keeper_ends(void **state)
{
    static const char *const levels[] = {"--level=off", "--level=basic", "--level=auto"};
    struct world *world = *state;
    struct loop *loop;
    struct err err;

    assert_int_equal(loop_open(&loop, &err), 0);
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        const char *const more[] = {levels[i], NULL};
        struct child *child;
        int fds[2], status;
        char byte;
        pid_t pid;

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid = start(world, more, "echo; sleep 77006", fds);
        (void)close(fds[1]);
        assert_int_equal(read(fds[0], &byte, 1), 1);
        want_sleeper("77006", true);
        assert_int_equal(child_watch(loop, pid, child_start_ticks(pid), NULL, NULL, &child, &err),
                         0);
        assert_int_equal(kill(pid, SIGSTOP), 0);
        assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
        assert_true(WIFSTOPPED(status));
        confine_end(child);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        want_sleeper("77006", false);
        child_free(&child);
        (void)close(fds[0]);
    }
    loop_close(&loop);
}

/* A worker that was killed has left a cgroup of its name; the next one of that name removes it. */
static void test_groups_of_the_dead_are_swept(void **state)
{
    struct world *world = *state;
    OWNED(mem_free) char *mine = xasprintf("test-sweep-%d", (int)getpid());
    OWNED(mem_free) char *group = NULL, *option = NULL;
    pid_t dead = fork();
    const char *more[] = {"--level=basic", "--processes=50", NULL, NULL};
    int status;

    if (dead == 0)
        _exit(0);
    assert_int_equal(waitpid(dead, &status, 0), dead);
    group = xasprintf("%s-%d", mine, (int)dead);
    option = xasprintf("--group=%s", group);
    more[2] = option;
    assert_int_equal(run(world, more, "true"), 0);
    if (!group_is_there(group))
        skip(); /* no cgroups for us here */
    confine_group_sweep("test-other");
    assert_true(group_is_there(group));
    confine_group_sweep(mine);
    assert_false(group_is_there(group));
}

static void test_bad_use(void **state)
{
    static const struct {
        const char *arg, *holds;
    } rows[] = {
        {"--level=iron", "isolation is 'iron'"},
        {"--network=some", "--network is 'some'"},
        {"--processes=-1", "processes"},
    };
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const char *const more[] = {rows[i].arg, NULL};

        assert_int_equal(run(world, more, "echo it-ran"), CONFINE_EXIT);
        want_said(world, rows[i].holds);
        assert_null(strstr(world->said, "it-ran"));
    }
}

static void test_help(void **state)
{
    static const char *const more[] = {"--help", NULL};
    struct world *world = *state;

    assert_int_equal(run(world, more, "echo it-ran"), 0); /* a leak would say 23 */
    want_said(world, "--network");
    assert_null(strstr(world->said, "it-ran"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_exit_codes_and_signals_pass, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_the_platform_comes_first, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_idle_policy, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_sessions_own_nice_value, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_files, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_network, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_attacks, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_calls_and_environment, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_a_fork_bomb_ends_at_its_limit, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(test_memory_over_the_limit, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_nothing_is_left, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_a_stopped_keeper_ends, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_groups_of_the_dead_are_swept, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_bad_use, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_help, world_open, world_close),
    };

    if (argc > 1 && strcmp(argv[1], "confine") == 0)
        return confine_main(argc - 1, argv + 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
