/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Docker or Podman: which of them is here, and the command lines that we give it.
 *
 * A container runs in the foreground of its client, under a keeper (workers/confine.h) that removes
 * the container when the client has ended, when it is told to, and when we die: a client's death
 * alone leaves a container of Docker's running. Its name is therefore one that nobody else takes.
 *
 * container_find() looks at the machine; the rest is pure.
 * Thread: any.   Tests: tests/unit/test_container.c, tests/stack/test_training_container.py
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define CONTAINER_LABEL "headrace.owner"
#define CONTAINER_IMAGE_MAX 255

/* Name of the container of a server; the keeper of its host puts <pid>-<start> of itself for @. */
#define CONTAINER_OF_SERVER "headrace-server-@"

struct container_tool {
    char *program; /* its path; NULL: neither is here */
    bool is_podman;
    bool has_init; /* can put a reaper of its own in front of the program */
    uint64_t file_count_max,
        process_count_max; /* what we ourselves may have of them; 0: no limit */
};

/* Docker when its daemon answers, else Podman, else none. Free with container_tool_done(). */
void container_find(struct container_tool *ret_tool);
void container_tool_done(struct container_tool *tool);
const char *container_tool_name(const struct container_tool *tool); /* "docker", "podman", "" */

struct container_mount {
    const char *from, *to;
    bool read_only;
};

struct container_run {
    const struct container_tool *tool;
    const char *image, *name;
    const char *owner;   /* label by which what is left over is found; NULL: none */
    const char *user;    /* NULL: the image's */
    const char *workdir; /* NULL: the image's */
    const char *publish; /* "127.0.0.1:8000:80"; NULL: it has the network of the machine */
    bool init;           /* where the tool has one */
    bool fetched;        /* the image is here: it is not fetched now */
    const struct container_mount *mounts;
    size_t mount_count;
    const char *const *env; /* NAME=value */
    size_t env_count;
    uint64_t memory_size, process_count; /* 0: no limit */
    const uint32_t *gpus; /* indices on the machine; in the container they count from 0 */
    size_t gpu_count;
    const char *const *command; /* in place of the image's own, ends in NULL; NULL: the image's */
};

struct container_words {
    char **words; /* ends in NULL */
    size_t count;
};

/* For our own binary: `headrace confine … -- docker run …`. ERR_RANGE: the image's name is none. */
int container_run_words(const struct container_run *run, struct container_words *ret_words,
                        struct err *err) MUST_CHECK;

#define CONTAINER_ID_SIZE 64 /* hex digits, as with --no-trunc */

/* The ids that stand in lines of their own in what the tool has printed, at most `most` of them;
 * other lines, warnings and an id of which a part is missing, are passed over. They point into
 * `text`, which is cut up. Returns how many. */
size_t container_ids(char *text, const char **to, size_t most);

/* For our own binary: any other command of the tool, `words` ending in NULL. */
void container_call_words(const struct container_tool *tool, const char *const *words,
                          struct container_words *ret_words);

/* The name with what stands for @; without one it is a copy. The caller frees. */
char *container_name_of(const char *name, pid_t keeper);

void container_words_done(struct container_words *words);

/* ERR_RANGE: a text that no registry would take, or that the tool would take for an option. */
int container_image_check(const char *image, struct err *err) MUST_CHECK;
