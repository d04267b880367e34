/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sending: frames are gathered in one buffer; a descriptor is remembered with the position of its
 * frame's first byte, and sendmsg(2) attaches it when that byte is the next to leave. A Unix
 * stream socket never merges bytes across such a point, so the receiver gets the descriptor not
 * later than the frame.
 *
 * Receiving: descriptors queue up as they arrive; a decoded frame that names one takes the oldest.
 * It must be sealed against shrinking and writing: the peer is another program, perhaps a user's,
 * and a mapping that shrinks is a SIGBUS in ours. A tunnel is a socket instead, and is handed on.
 */

#include "workers/frame_link.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"

#define LINK_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define LINK_FDS_A_MESSAGE 16

struct link_fd {
    int fd;
    uint64_t position; /* unsent ones: of the frame, counted over the life of the link */
};

struct link_fds {
    struct link_fd *items;
    size_t first, count; /* a ring of FRAME_LINK_FDS_MAX */
};

struct frame_link {
    int fd;
    struct wire_decoder *decoder;
    struct buf unsent;
    uint64_t sent_size, gathered_size; /* over the life of the link */
    size_t unsent_at;                  /* bytes of `unsent` that have left */
    struct frame_reader reader;
    struct link_fds out, in;
    void *mapped; /* of the frame that was last given out */
    size_t mapped_size;
    int mapped_fd; /* while something is mapped */
    int tunnel_fd; /* of the frame that was last given out; -1 */
};

/* ---- a bounded queue of descriptors ---- */

static bool fds_push(struct link_fds *fds, struct link_fd item)
{
    if (fds->items == NULL)
        fds->items = xcalloc(FRAME_LINK_FDS_MAX, sizeof(*fds->items));
    if (fds->count == FRAME_LINK_FDS_MAX)
        return false;
    fds->items[(fds->first + fds->count++) % FRAME_LINK_FDS_MAX] = item;
    return true;
}

static struct link_fd *fds_first(struct link_fds *fds)
{
    return fds->count == 0 ? NULL : &fds->items[fds->first];
}

static void fds_drop_first(struct link_fds *fds)
{
    fds->first = (fds->first + 1) % FRAME_LINK_FDS_MAX;
    fds->count--;
}

static void fds_done(struct link_fds *fds)
{
    for (struct link_fd *item; (item = fds_first(fds)) != NULL; fds_drop_first(fds))
        (void)close(item->fd);
    mem_free(&fds->items);
}

/* ---- life ---- */

struct frame_link *frame_link_new(int fd)
{
    struct frame_link *link = xcalloc(1, sizeof(*link));

    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    link->fd = fd;
    link->tunnel_fd = -1;
    link->decoder = wire_decoder_new();
    buf_init(&link->unsent, FRAME_LINK_UNSENT_MAX);
    frame_reader_init(&link->reader);
    return link;
}

static void link_unmap(struct frame_link *link)
{
    if (link->tunnel_fd >= 0)
        (void)close(link->tunnel_fd);
    link->tunnel_fd = -1;
    if (link->mapped == NULL)
        return;
    (void)munmap(link->mapped, link->mapped_size);
    (void)close(link->mapped_fd);
    link->mapped = NULL;
}

int frame_link_fd_of(const struct frame_link *link, const void *bytes)
{
    return link->mapped != NULL && link->mapped == bytes ? link->mapped_fd : -1;
}

void frame_link_free(struct frame_link **link_p)
{
    struct frame_link *link = TAKE(*link_p);

    if (link == NULL)
        return;
    link_unmap(link);
    fds_done(&link->out);
    fds_done(&link->in);
    frame_reader_done(&link->reader);
    buf_done(&link->unsent);
    wire_decoder_free(&link->decoder);
    (void)close(link->fd);
    free(link);
}

int frame_link_fd(const struct frame_link *link)
{
    return link->fd;
}

/* ---- sending ---- */

static int memfd_fill(int fd, struct wire_bytes bytes, struct err *err)
{
    size_t at = 0;

    while (at < bytes.size) {
        ssize_t n = write(fd, bytes.bytes + at, bytes.size - at);

        if (n < 0)
            return err_set_errno(err, ERR_MEMORY, "write %zu bytes to a memfd", bytes.size);
        at += (size_t)n;
    }
    return 0;
}

static int memfd_make(struct wire_bytes bytes, int *ret_fd, struct err *err)
{
    int fd, r;

    if (bytes.size > FRAME_FD_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "%zu bytes for an engine host, the limit is %u",
                       bytes.size, FRAME_FD_SIZE_MAX);
    fd = memfd_create("headrace-frame", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, "make a memfd");
    r = memfd_fill(fd, bytes, err);
    if (r < 0) {
        (void)close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int link_gather(struct frame_link *link, enum frame_type type, const void *fields,
                       struct err *err)
{
    size_t before;
    int r;

    if (link->unsent_at > link->unsent.size / 2) {
        buf_consume(&link->unsent, link->unsent_at);
        link->unsent_at = 0;
    }
    before = link->unsent.size;
    r = frame_encode(type, fields, &link->unsent, err);
    if (r == 0)
        link->gathered_size += link->unsent.size - before;
    return r;
}

/* Takes the descriptor. */
static int link_gather_beside(struct frame_link *link, enum frame_type type, const void *fields,
                              int fd, struct err *err)
{
    uint64_t position = link->gathered_size;
    int r = link_gather(link, type, fields, err);

    if (r == 0 && !fds_push(&link->out, (struct link_fd){fd, position}))
        r = err_set(err, ERR_FULL, "%d descriptors wait to be sent", FRAME_LINK_FDS_MAX);
    if (r < 0)
        (void)close(fd);
    return r;
}

/* Likewise, of a memfd. */
static int link_gather_fd(struct frame_link *link, enum frame_type type, const void *fields, int fd,
                          struct err *err)
{
    int r;

    if (fcntl(fd, F_ADD_SEALS, LINK_SEALS) == 0)
        return link_gather_beside(link, type, fields, fd, err);
    r = err_set_errno(err, ERR_IO, "seal a memfd");
    (void)close(fd);
    return r;
}

static int link_gather_bytes(struct frame_link *link, enum frame_type type, const void *fields,
                             struct wire_bytes bytes, struct err *err)
{
    int fd = -1, r = memfd_make(bytes, &fd, err);

    return r < 0 ? r : link_gather_fd(link, type, fields, fd, err);
}

int frame_link_send_fd(struct frame_link *link, const struct frame_req *req, int fd,
                       struct err *err)
{
    return link_gather_fd(link, FRAME_REQ, req, fd, err);
}

int frame_link_send_tunnel(struct frame_link *link, const struct frame_req *req, int fd,
                           struct err *err)
{
    assert(req->tunnel && req->input_fd_size == 0 && req->input.size <= FRAME_INLINE_MAX);
    return link_gather_beside(link, FRAME_REQ, req, fd, err);
}

int frame_link_send_evt_fd(struct frame_link *link, const struct frame_evt *evt, int fd,
                           struct err *err)
{
    return link_gather_fd(link, FRAME_EVT, evt, fd, err);
}

int frame_link_send(struct frame_link *link, enum frame_type type, const void *fields,
                    struct err *err)
{
    if (type == FRAME_REQ && ((const struct frame_req *)fields)->input.size > FRAME_INLINE_MAX) {
        struct frame_req req = *(const struct frame_req *)fields;
        struct wire_bytes input = req.input;

        req.input = (struct wire_bytes){0};
        req.input_fd_size = input.size;
        return link_gather_bytes(link, type, &req, input, err);
    }
    if (type == FRAME_EVT && ((const struct frame_evt *)fields)->data.size > FRAME_INLINE_MAX) {
        struct frame_evt evt = *(const struct frame_evt *)fields;
        struct wire_bytes data = evt.data;

        evt.data = (struct wire_bytes){0};
        evt.data_fd_size = data.size;
        return link_gather_bytes(link, type, &evt, data, err);
    }
    return link_gather(link, type, fields, err);
}

/* Bytes that may leave in one call: up to the next frame with a descriptor, which begins one. */
static size_t link_piece(struct frame_link *link, int *ret_fd)
{
    size_t left = link->unsent.size - link->unsent_at;
    struct link_fd *next = fds_first(&link->out);

    *ret_fd = -1;
    if (next != NULL && next->position == link->sent_size) {
        *ret_fd = next->fd;
        next = link->out.count > 1 ? &link->out.items[(link->out.first + 1) % FRAME_LINK_FDS_MAX]
                                   : NULL;
    }
    if (next != NULL && next->position - link->sent_size < left)
        left = (size_t)(next->position - link->sent_size);
    return left;
}

static ssize_t link_write(struct frame_link *link, size_t size, int fd)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec piece = {link->unsent.bytes + link->unsent_at, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};

    if (fd >= 0) {
        message.msg_control = control.room;
        message.msg_controllen = sizeof(control.room);
        control.head.cmsg_len = CMSG_LEN(sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        *(int *)(void *)CMSG_DATA(&control.head) = fd;
    }
    return sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

int frame_link_flush(struct frame_link *link, bool *ret_more, struct err *err)
{
    *ret_more = false;
    while (link->unsent_at < link->unsent.size) {
        int fd;
        size_t size = link_piece(link, &fd);
        ssize_t n = link_write(link, size, fd);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            *ret_more = true;
            return 0;
        }
        if (n < 0)
            return err_set_errno(err, ERR_UNAVAILABLE, "write to the other side");
        if (fd >= 0) {
            (void)close(fd);
            fds_drop_first(&link->out);
        }
        link->unsent_at += (size_t)n;
        link->sent_size += (size_t)n;
    }
    buf_clear(&link->unsent);
    link->unsent_at = 0;
    return 0;
}

/* ---- receiving ---- */

/* Keeps the descriptors of one message; what is over the limit is closed and ends the link. */
static int link_take_fds(struct frame_link *link, struct msghdr *message, struct err *err)
{
    int r = 0;

    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head != NULL;
         head = CMSG_NXTHDR(message, head)) {
        const int *fds = (const int *)(const void *)CMSG_DATA(head);

        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (head->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            if (fds_push(&link->in, (struct link_fd){fds[i], 0}))
                continue;
            (void)close(fds[i]);
            r = err_set(err, ERR_TOO_BIG, "the other side sent over %d descriptors",
                        FRAME_LINK_FDS_MAX);
        }
    }
    if (message->msg_flags & MSG_CTRUNC)
        r = err_set(err, ERR_TOO_BIG, "the other side sent too many descriptors at once");
    return r;
}

int frame_link_receive(struct frame_link *link, struct err *err)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int) * LINK_FDS_A_MESSAGE)];
    } control;
    struct iovec piece;
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = control.room,
                             .msg_controllen = sizeof(control.room)};
    ssize_t n;
    int r;

    link_unmap(link);
    piece.iov_base = frame_reader_room(&link->reader, &piece.iov_len);
    do {
        n = recvmsg(link->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (n < 0)
        return err_set_errno(err, ERR_UNAVAILABLE, "read from the other side");
    if (n == 0)
        return err_set(err, ERR_UNAVAILABLE, "the other side has closed");
    frame_reader_commit(&link->reader, (size_t)n);
    r = link_take_fds(link, &message, err);
    return r < 0 ? r : 1;
}

static int memfd_map(int fd, size_t size, void **ret_mapped, struct err *err)
{
    struct stat about;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_WRITE)) != (F_SEAL_SHRINK | F_SEAL_WRITE))
        return err_set(err, ERR_MALFORMED, "a descriptor is no memfd sealed against changes");
    if (fstat(fd, &about) < 0 || (uint64_t)about.st_size < size)
        return err_set(err, ERR_MALFORMED, "a memfd is shorter than the %zu bytes of its frame",
                       size);
    *ret_mapped = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (*ret_mapped == MAP_FAILED)
        return err_set_errno(err, ERR_MEMORY, "map %zu bytes", size);
    return 0;
}

/* Gives a frame the bytes that came beside it. */
static int link_map(struct frame_link *link, uint64_t size, struct wire_bytes *ret_bytes,
                    struct err *err)
{
    struct link_fd *first = fds_first(&link->in);
    void *mapped;
    int r;

    if (size == 0)
        return 0;
    if (size > FRAME_FD_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "a frame names %llu bytes beside it, the limit is %u",
                       (unsigned long long)size, FRAME_FD_SIZE_MAX);
    if (first == NULL)
        return err_set(err, ERR_MALFORMED, "a frame names a descriptor that did not come");
    r = memfd_map(first->fd, (size_t)size, &mapped, err);
    link->mapped_fd = first->fd;
    fds_drop_first(&link->in);
    if (r < 0) {
        (void)close(link->mapped_fd);
        return r;
    }
    link->mapped = mapped;
    link->mapped_size = (size_t)size;
    *ret_bytes = (struct wire_bytes){mapped, (size_t)size};
    return 0;
}

static int link_take_socket(struct frame_link *link, const struct frame_req *req, struct err *err)
{
    struct link_fd *first = fds_first(&link->in);
    struct stat about;

    if (!req->tunnel)
        return 0;
    if (first == NULL || req->input_fd_size > 0)
        return err_set(err, ERR_MALFORMED, "a frame names a connection that did not come");
    link->tunnel_fd = first->fd;
    fds_drop_first(&link->in);
    if (fstat(link->tunnel_fd, &about) == 0 && S_ISSOCK(about.st_mode))
        return 0;
    return err_set(err, ERR_MALFORMED, "what came as a connection is no socket");
}

int frame_link_take_tunnel(struct frame_link *link)
{
    int fd = link->tunnel_fd;

    link->tunnel_fd = -1;
    return fd;
}

int frame_link_next(struct frame_link *link, struct frame *ret_frame, struct err *err)
{
    struct wire_bytes body;
    int r;

    link_unmap(link);
    r = frame_reader_next(&link->reader, &body, err);
    if (r <= 0)
        return r;
    r = frame_decode(link->decoder, body.bytes, body.size, ret_frame, err);
    if (r == 0 && ret_frame->type == FRAME_REQ)
        r = link_take_socket(link, &ret_frame->req, err);
    if (r == 0 && ret_frame->type == FRAME_REQ)
        r = link_map(link, ret_frame->req.input_fd_size, &ret_frame->req.input, err);
    if (r == 0 && ret_frame->type == FRAME_EVT)
        r = link_map(link, ret_frame->evt.data_fd_size, &ret_frame->evt.data, err);
    return r < 0 ? r : 1;
}
