/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Ports: finding a free one, closing it and starting a server on it is a race. It is a small one
 * outside the range of outgoing connections, which the kernel gives to anybody at any time, and
 * dev_run.c starts a server again on another port when its log says that the address is in use.
 */

#include "cli/dev_files.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "base/settings.h"

enum {
    TAIL_SIZE = 16384,
    SCAN_SIZE_MAX = 1 << 20,
    LINE_SHOWN_MAX = 400,
    REMOVE_OPEN_DIRS = 32,
    PORT_FIRST = 16384, /* the lowest one picked */
    PORT_TRIES = 64,
};

int dev_file_write(const char *path, const char *text, struct err *err)
{
    OWNED(mem_free) char *temporary = xasprintf("%s.new", path);
    size_t size = strlen(text);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool written;

    if (fd < 0)
        return err_set_errno(err, ERR_IO, "open %s", temporary);
    written = write(fd, text, size) == (ssize_t)size && fsync(fd) == 0;
    if (close(fd) < 0 || !written)
        return err_set_errno(err, ERR_IO, "write %s", temporary);
    if (rename(temporary, path) < 0)
        return err_set_errno(err, ERR_IO, "rename %s", temporary);
    return 0;
}

int dev_file_read(const char *path, size_t limit, char **ret_text, struct err *err)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(limit);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char part[4096];
    ssize_t got;
    int code;

    if (fd < 0)
        return err_set_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "open %s", path);
    while ((got = read(fd, part, sizeof(part))) > 0)
        buf_append(&buf, part, (size_t)got);
    (void)close(fd);
    if (got < 0)
        return err_set_errno(err, ERR_IO, "read %s", path);
    code = buf_check(&buf, path, err);
    if (code < 0)
        return code;
    *ret_text = xstrdup(buf_text(&buf));
    return 0;
}

bool dev_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

char *dev_file_tail(const char *path, int line_count, const char *indent)
{
    OWNED(buf_done) struct buf out = BUF_WITH_LIMIT(TAIL_SIZE * 4);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char text[TAIL_SIZE + 1];
    ssize_t got = 0;
    off_t size;
    char *start;

    if (fd < 0)
        return xstrdup("");
    size = lseek(fd, 0, SEEK_END);
    if (size > 0)
        got = pread(fd, text, TAIL_SIZE, size > TAIL_SIZE ? size - TAIL_SIZE : 0);
    (void)close(fd);
    while (got > 0 && text[got - 1] == '\n')
        got--;
    if (got <= 0)
        return xstrdup("");
    text[got] = '\0';
    start = text + got;
    while (start > text && (start[-1] != '\n' || --line_count > 0))
        start--;
    for (char *rest = start, *line; (line = strsep(&rest, "\n")) != NULL;)
        buf_printf(&out, "%s%s\n", indent, line);
    return xstrdup(buf_text(&out));
}

off_t dev_file_size(const char *path)
{
    struct stat info;

    return stat(path, &info) < 0 ? 0 : info.st_size;
}

static bool line_has(const char *line, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strcasestr(line, *words) != NULL)
            return true;
    return false;
}

char *dev_file_lines_with(const char *path, off_t from, const char *const *words, int line_count,
                          const char *indent)
{
    OWNED(buf_done) struct buf out = BUF_WITH_LIMIT(TAIL_SIZE * 4);
    OWNED(mem_free) char *text = xmalloc(SCAN_SIZE_MAX + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (fd < 0)
        return xstrdup("");
    got = pread(fd, text, SCAN_SIZE_MAX, from);
    (void)close(fd);
    text[got < 0 ? 0 : got] = '\0';
    for (char *rest = text, *line; line_count > 0 && (line = strsep(&rest, "\n")) != NULL;) {
        if (!line_has(line, words))
            continue;
        buf_printf(&out, "%s%.*s\n", indent, LINE_SHOWN_MAX, line);
        line_count--;
    }
    return xstrdup(buf_text(&out));
}

int dev_dir_make(const char *path, struct err *err)
{
    OWNED(mem_free) char *part = xstrdup(path);

    for (char *slash = part + 1; slash != NULL && *part != '\0';) {
        slash = strchr(slash, '/');
        if (slash != NULL)
            *slash = '\0';
        if (mkdir(part, 0700) < 0 && errno != EEXIST)
            return err_set_errno(err, ERR_IO, "make the directory %s", part);
        if (slash != NULL)
            *slash++ = '/';
    }
    return 0;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info;
    (void)kind;
    (void)place;
    return remove(path);
}

int dev_dir_remove(const char *path, struct err *err)
{
    if (nftw(path, remove_one, REMOVE_OPEN_DIRS, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        return err_set_errno(err, ERR_IO, "remove %s", path);
    return 0;
}

static int port_bind(uint16_t port, uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    int code;

    if (fd < 0)
        return -1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    code = bind(fd, (struct sockaddr *)&address, size);
    if (code == 0)
        code = getsockname(fd, (struct sockaddr *)&address, &size);
    (void)close(fd);
    if (code == 0)
        *ret_port = ntohs(address.sin_port);
    return code;
}

/* The first port that the kernel gives to outgoing connections (Linux, ip-sysctl). */
static uint16_t port_ephemeral_first(void)
{
    OWNED(mem_free) char *text = NULL;
    int64_t first;
    struct err err;

    if (dev_file_read("/proc/sys/net/ipv4/ip_local_port_range", TAIL_SIZE, &text, &err) < 0)
        return 0;
    text[strcspn(text, "\t ")] = '\0';
    if (settings_parse_int("ip_local_port_range", text, &first, &err) < 0 || first > UINT16_MAX)
        return 0;
    return (uint16_t)first;
}

/* One that no outgoing connection can take between this look and the server's bind, which for
 * Kafka is seconds. */
static int port_pick_quiet(uint16_t *ret_port)
{
    uint16_t end = port_ephemeral_first();
    uint16_t drawn;

    for (int i = 0; i < PORT_TRIES && end > PORT_FIRST; i++) {
        rng_secret_bytes(&drawn, sizeof(drawn)); /* two that start together draw apart */
        drawn = (uint16_t)(PORT_FIRST + drawn % (end - PORT_FIRST));
        if (!dev_port_answers(drawn) && port_bind(drawn, ret_port) == 0)
            return 0;
    }
    return -1;
}

int dev_port_pick(uint16_t preferred, uint16_t *ret_port, struct err *err)
{
    if (preferred != 0 && !dev_port_answers(preferred) && port_bind(preferred, ret_port) == 0)
        return 0;
    if (port_pick_quiet(ret_port) == 0)
        return 0;
    if (port_bind(0, ret_port) < 0)
        return err_set_errno(err, ERR_DEPENDENCY, "find a free port on 127.0.0.1");
    return 0;
}

bool dev_port_answers(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answers;

    if (fd < 0)
        return false;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    answers = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    (void)close(fd);
    return answers;
}

static char *program_in(const char *directory, const char *name)
{
    char *path = xasprintf("%s/%s", directory, name);

    if (access(path, X_OK) == 0)
        return path;
    mem_free(&path);
    return NULL;
}

char *dev_program_find(const char *name, const char *const *extra_dirs)
{
    const char *path = getenv("PATH");
    OWNED(mem_free) char *dirs = xstrdup(path == NULL ? "/usr/bin:/bin" : path);
    char *rest = dirs;
    char *directory;

    while ((directory = strsep(&rest, ":")) != NULL) {
        char *found = *directory == '\0' ? NULL : program_in(directory, name);

        if (found != NULL)
            return found;
    }
    for (; extra_dirs != NULL && *extra_dirs != NULL; extra_dirs++) {
        char *found = program_in(*extra_dirs, name);

        if (found != NULL)
            return found;
    }
    return NULL;
}
