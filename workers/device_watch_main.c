/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace host-devices`: asks the driver for an agent, which starts it; see device_watch.h. It
 * may stand still in any call of NVML, and is killed then. Hidden: it is in no list of commands.
 *
 * Waits for Xids a moment, looks whether it is asked, and so on; one that is asked for nothing but
 * Xids wakes up five times a second.
 *
 * Shutdown: ends when the agent closes its end of the socket, or ends.
 */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/log.h"
#include "workers/device_watch.h"

#define HOST_SOCKET_FD 3
#define XID_WAIT_MS 200
#define FOREVER (-1)

static bool packet_send(const struct device_packet *packet, size_t size)
{
    return send(HOST_SOCKET_FD, packet, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool list_send(struct device_packet *packet, const char *library)
{
    struct device_list *list = &packet->list;
    const char *why = nvml_load(library);

    *packet = (struct device_packet){.kind = DEVICE_PACKET_LIST};
    if (why != NULL)
        mem_copy_text(list->why, why);
    else
        list->count = nvml_inventory(list->infos, &list->versions, list->why);
    return packet_send(packet, DEVICE_PACKET_SIZE(list));
}

/* Waits a moment for an Xid and sends it. Returns how long the agent may be waited for now. */
static int xid_send(struct device_packet *packet)
{
    *packet = (struct device_packet){.kind = DEVICE_PACKET_XID};
    switch (nvml_xid_wait(XID_WAIT_MS, &packet->xid)) {
    case NVML_ILL:
        return XID_WAIT_MS;
    case NVML_XID:
        (void)packet_send(packet, DEVICE_PACKET_SIZE(xid)); /* nobody there: poll() says so */
        return 0;
    case NVML_QUIET:
        break;
    }
    return 0;
}

static bool xids_open(void)
{
    struct err err;

    if (nvml_xids_open(&err) == 0)
        return true;
    log_warn("xids_not_watched", LOG_ERR(&err));
    return false;
}

static int serve(const char *library)
{
    static struct device_packet packet;
    struct pollfd agent = {.fd = HOST_SOCKET_FD, .events = POLLIN};
    bool tried = false, watched = false;
    char asked;

    for (;;) {
        int wait_ms = watched ? xid_send(&packet) : FOREVER;

        if (poll(&agent, 1, wait_ms) <= 0)
            continue;
        if (recv(HOST_SOCKET_FD, &asked, sizeof(asked), 0) <= 0 || !list_send(&packet, library))
            return 0;
        if (!tried && packet.list.count > 0) {
            tried = true;
            watched = xids_open();
        }
    }
}

int host_devices_main(int argc, char **argv)
{
    const struct log_options options = {.program = "host-devices", .level = LOG_LEVEL_INFO};
    const struct rlimit no_core = {0, 0};
    struct err err;

    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (argc != 2 || log_open(&options, &err) < 0 || fcntl(HOST_SOCKET_FD, F_GETFD) < 0) {
        log_error("host_start_failed", LOG_STR("error", "only an agent starts host-devices"));
        return 1;
    }
    return serve(argv[1]);
}
