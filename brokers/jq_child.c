/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/jq_child.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "brokers/jq.h"
#include "brokers/jq_host.h"

#define CHECK_TIMEOUT_MS 30000
#define REFUSAL_MAX 4096

static void spawn_files(posix_spawn_file_actions_t *files, int fd)
{
    (void)posix_spawn_file_actions_init(files);
    (void)posix_spawn_file_actions_addopen(files, 0, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_addopen(files, 1, "/dev/null", O_WRONLY, 0);
    (void)posix_spawn_file_actions_addopen(files, 2, "/dev/null", O_WRONLY, 0);
    (void)posix_spawn_file_actions_adddup2(files, fd, JQ_HOST_FD);
    (void)posix_spawn_file_actions_addclosefrom_np(files, JQ_HOST_FD + 1);
}

static void spawn_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, all;

    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    (void)posix_spawnattr_init(attributes);
    (void)posix_spawnattr_setsigmask(attributes, &none);
    (void)posix_spawnattr_setsigdefault(attributes, &all);
    (void)posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
                                                   POSIX_SPAWN_SETPGROUP);
}

int jq_child_start(pid_t *ret_pid, int *ret_fd, struct err *err)
{
    static char name[] = "host-jq", zone[] = "TZ=UTC0", self[] = "headrace";
    char *const argv[] = {self, name, NULL}, *const env[] = {zone, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    int fds[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return err_set_errno(err, ERR_IO, "socketpair");
    spawn_files(&files, fds[1]);
    spawn_attributes(&attributes);
    r = posix_spawn(ret_pid, "/proc/self/exe", &files, &attributes, argv, env);
    (void)posix_spawn_file_actions_destroy(&files);
    (void)posix_spawnattr_destroy(&attributes);
    (void)close(fds[1]);
    if (r != 0) {
        (void)close(fds[0]);
        return err_set(err, ERR_DEPENDENCY, "start host-jq: %s", strerror(r));
    }
    *ret_fd = fds[0];
    return 0;
}

/* A process that has ended, or is about to, keeps its own end: the kill comes too late for it. */
bool jq_child_end(pid_t pid, char *text, size_t text_size)
{
    int status = 0;
    pid_t reaped;

    (void)kill(pid, SIGKILL);
    do {
        reaped = waitpid(pid, &status, 0);
    } while (reaped < 0 && errno == EINTR);
    if (reaped == pid && WIFEXITED(status) && WEXITSTATUS(status) == JQ_HOST_EXIT_CPU) {
        (void)snprintf(text, text_size, "the expression took over %d s of processor time",
                       JQ_HOST_CPU_MS / 1000);
    } else if (reaped == pid && WIFEXITED(status) && WEXITSTATUS(status) == JQ_HOST_EXIT_MEMORY) {
        (void)snprintf(text, text_size, "the expression took over %d MiB of memory",
                       JQ_HOST_MEMORY_MB);
    } else if (reaped == pid && WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
        (void)snprintf(text, text_size,
                       "the expression was too much for jq (%s): too deep a nest, or no memory",
                       strsignal(WTERMSIG(status)));
    } else {
        (void)snprintf(text, text_size, "the process of jq was killed");
        return false;
    }
    return true;
}

void jq_child_head(uint8_t to[4], size_t size)
{
    for (unsigned i = 0; i < 4; i++)
        to[i] = (uint8_t)(size >> 8 * i);
}

void jq_child_program(const struct chain *chain, struct buf *to)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(JQ_BINDING_MAX);
    json_t *each = json_array(), *root;
    uint8_t head[4];
    char *dumped;

    for (size_t i = 0; i < chain->jq.expression_count; i++) {
        buf_clear(&text);
        chain_jq_program_of(&chain->jq, i, &text);
        (void)json_array_append_new(each, json_string(buf_text(&text)));
    }
    buf_clear(&text);
    chain_jq_program(&chain->jq, &text);
    root = json_pack("{s:s, s:o}", "program", buf_text(&text), "each", each);
    dumped = json_dumps(root, JSON_COMPACT);
    jq_child_head(head, strlen(dumped));
    buf_append(to, head, sizeof(head));
    buf_append_text(to, dumped);
    free(dumped);
    json_decref(root);
}

int jq_child_refusal(const struct chain *chain, const uint8_t *bytes, size_t size, struct err *err)
{
    size_t at = 0;

    if (size < 5 || bytes[0] != '-')
        return err_set(err, ERR_INTERNAL, "host-jq does not say what is wrong");
    for (unsigned i = 0; i < 4; i++)
        at |= (size_t)bytes[1 + i] << 8 * i;
    if (at >= chain->jq.expression_count)
        return err_set(err, ERR_INTERNAL, "host-jq names expression %zu of %zu", at,
                       chain->jq.expression_count);
    return err_set(err, ERR_MALFORMED, "%s: jq: %.*s", chain->jq.expressions[at].where,
                   (int)(size - 5), (const char *)bytes + 5);
}

/* ---- a check ---- */

static bool exchange(int fd, const struct buf *program, struct buf *to)
{
    size_t sent = 0;

    while (to->size < 4 || to->size - 4 < (to->bytes[0] | (size_t)to->bytes[1] << 8)) {
        struct pollfd ready = {.fd = fd,
                               .events = sent < program->size ? POLLIN | POLLOUT : POLLIN};
        char bytes[1024];
        ssize_t n;

        if (poll(&ready, 1, CHECK_TIMEOUT_MS) <= 0)
            return false;
        if (ready.revents & POLLOUT) {
            n = send(fd, program->bytes + sent, program->size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n > 0)
                sent += (size_t)n;
        }
        if ((ready.revents & (POLLIN | POLLHUP | POLLERR)) == 0)
            continue;
        n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n <= 0)
            return false;
        buf_append(to, bytes, (size_t)n);
        if (to->failed)
            return false;
    }
    return true;
}

int jq_check(const struct chain *chain, struct err *err)
{
    OWNED(buf_done) struct buf program = BUF_WITH_LIMIT(2 * JQ_BINDING_MAX);
    OWNED(buf_done) struct buf came = BUF_WITH_LIMIT(REFUSAL_MAX);
    char ended[160];
    bool answered;
    pid_t pid;
    int fd, r;

    if (chain->jq.part_count == 0)
        return 0;
    jq_child_program(chain, &program);
    r = buf_check(&program, "the program of all expressions", err);
    if (r == 0)
        r = jq_child_start(&pid, &fd, err);
    if (r < 0)
        return r;
    answered = exchange(fd, &program, &came);
    (void)close(fd);
    if (answered)
        r = came.bytes[4] == '+' ? 0 : jq_child_refusal(chain, came.bytes + 4, came.size - 4, err);
    if (jq_child_end(pid, ended, sizeof(ended)) && !answered)
        return err_set(err, ERR_MALFORMED, "jq: %s while it was compiled", ended);
    return answered ? r : err_set(err, ERR_UNAVAILABLE, "jq does not answer: %s", ended);
}

int jq_check_json(const char *text, struct err *err)
{
    OWNED(chain_free) struct chain *chain = NULL;
    json_error_t where;
    json_t *json = json_loads(text, 0, &where);
    int r = json != NULL ? chain_parse(json, &chain, err)
                         : err_set(err, ERR_MALFORMED, "line %d: %s", where.line, where.text);

    json_decref(json);
    return r < 0 ? r : jq_check(chain, err);
}
