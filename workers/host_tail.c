/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/host_tail.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define READ_SIZE 8192
#define LINE_SIZE 240
#define BETWEEN " | "

uint64_t host_tail_begin(int fd)
{
    struct stat about;

    return fstat(fd, &about) == 0 && S_ISREG(about.st_mode) ? (uint64_t)about.st_size : 0;
}

/* Cut between two characters. */
static void line_copy(char to[LINE_SIZE], const char *text, size_t size)
{
    size_t at = size < LINE_SIZE - 1 ? size : LINE_SIZE - 1;

    while (at < size && at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80)
        at--;
    memcpy(to, text, at);
    to[at] = '\0';
}

/* The message of one of our lines; false: it is none of ours. */
static bool line_of_json(char to[LINE_SIZE], const char *line, size_t size)
{
    json_t *root = line[0] == '{' ? json_loadb(line, size, 0, NULL) : NULL;
    const char *program = json_string_value(json_object_get(root, "program"));
    const char *message = json_string_value(json_object_get(root, "message"));
    bool ours = message != NULL || program != NULL;

    if (message == NULL)
        message = json_string_value(json_object_get(root, "error"));
    if (message == NULL || (program != NULL && strcmp(program, "worker") == 0))
        message = "";
    if (ours)
        line_copy(to, message, strlen(message));
    json_decref(root);
    return ours;
}

static void line_make(char to[LINE_SIZE], const char *line, size_t size)
{
    if (size == 0 || line_of_json(to, line, size)) {
        to[size == 0 ? 0 : strlen(to)] = '\0';
    } else {
        line_copy(to, line, size);
        for (char *c = to; *c != '\0'; c++) {
            if (*c < ' ' || *c > '~')
                *c = '?';
        }
    }
    for (char *c = to; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\r')
            *c = ' ';
    }
}

void host_tail_text(const char *bytes, size_t size, char *to, size_t to_size)
{
    char line[LINE_SIZE];
    size_t used = 0;

    to[0] = '\0';
    while (size > 0) {
        size_t end = size, length;

        while (size > 0 && bytes[size - 1] != '\n')
            size--;
        line_make(line, bytes + size, end - size);
        size -= size > 0; /* its line feed */
        length = strlen(line);
        if (length == 0)
            continue;
        if (used + length + sizeof(BETWEEN) > to_size)
            return;
        if (used > 0) {
            memmove(to + length + sizeof(BETWEEN) - 1, to, used + 1);
            memcpy(to + length, BETWEEN, sizeof(BETWEEN) - 1);
            used += sizeof(BETWEEN) - 1;
        } else {
            to[length] = '\0';
        }
        memcpy(to, line, length);
        used += length;
    }
}

void host_tail_read(int fd, uint64_t begin, char *to, size_t to_size)
{
    OWNED(mem_free) char *path = xasprintf("/proc/self/fd/%d", fd);
    char bytes[READ_SIZE];
    uint64_t end = host_tail_begin(fd);
    int file = end == 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 0;

    to[0] = '\0';
    if (file < 0)
        return;
    if (begin > end)
        begin = 0; /* the log was begun anew meanwhile */
    if (end - begin > sizeof(bytes))
        begin = end - sizeof(bytes);
    n = pread(file, bytes, sizeof(bytes), (off_t)begin);
    (void)close(file);
    if (n > 0)
        host_tail_text(bytes, (size_t)n, to, to_size);
}
