/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Landlock and seccomp. The kernel says which rules of Landlock it knows, and rules that the
 * headers of Debian 12 do not know have their numbers here; they are the kernel's interface and
 * cannot change. What a kernel does not know is left out, and confine_describe() says so.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/ioprio.h>
#include <linux/landlock.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "workers/confine_int.h"

#define ACCESS_TRUNCATE (1ull << 14)    /* ABI 3 */
#define ACCESS_NET_BIND_TCP (1ull << 0) /* ABI 4 */
#define ACCESS_NET_CONNECT_TCP (1ull << 1)
#define RULE_NET_PORT 2
#define SCOPE_ABSTRACT_SOCKETS (1ull << 0) /* ABI 6 */
#define SCOPE_SIGNALS (1ull << 1)
#define ABI_NET 4
#define ABI_SCOPE 6

#define ACCESS_READ                                                                                \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define ACCESS_FILE                                                                                \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE |   \
     ACCESS_TRUNCATE)
#define ACCESS_ABI_1 ((1ull << 13) - 1)
#define ACCESS_WRITE ((ACCESS_ABI_1 | LANDLOCK_ACCESS_FS_REFER | ACCESS_TRUNCATE) & ~ACCESS_READ)

struct ruleset {
    uint64_t files, net, scoped;
};

struct port_rule {
    uint64_t allowed, port;
};

struct rules {
    int fd, abi;
    uint64_t files; /* what is forbidden unless a rule allows it */
};

int confine_landlock_abi(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    return abi < 0 ? 0 : (int)abi;
}

static int rules_open(struct rules *rules, struct ruleset wanted, struct err *err)
{
    size_t size = sizeof(uint64_t);

    rules->abi = confine_landlock_abi();
    if (rules->abi >= ABI_NET)
        size = 2 * sizeof(uint64_t);
    if (rules->abi >= ABI_SCOPE)
        size = sizeof(wanted);
    if (rules->abi < 2)
        wanted.files &= ACCESS_ABI_1;
    if (rules->abi < 3)
        wanted.files &= ~ACCESS_TRUNCATE;
    rules->files = wanted.files;
    rules->fd = (int)syscall(SYS_landlock_create_ruleset, &wanted, size, 0);
    if (rules->fd < 0)
        return err_set_errno(err, ERR_UNSUPPORTED, "make Landlock rules");
    return 0;
}

static int rules_close(struct rules *rules, struct err *err)
{
    long r = syscall(SYS_landlock_restrict_self, rules->fd, 0);

    (void)close(rules->fd);
    return r < 0 ? err_set_errno(err, ERR_UNSUPPORTED, "put Landlock rules in force") : 0;
}

/* A path that is not there needs no rule. */
static int rules_allow(struct rules *rules, const char *path, uint64_t allowed, struct err *err)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = allowed & rules->files};
    struct stat about;
    int r = 0;

    rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
    if (rule.parent_fd < 0)
        return 0;
    if (fstat(rule.parent_fd, &about) == 0 && !S_ISDIR(about.st_mode))
        rule.allowed_access &= ACCESS_FILE;
    if (syscall(SYS_landlock_add_rule, rules->fd, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        r = err_set_errno(err, ERR_UNSUPPORTED, "allow %s by Landlock", path);
    (void)close(rule.parent_fd);
    return r;
}

static int allow_read(void *opaque, const char *path, struct err *err)
{
    return rules_allow(opaque, path, ACCESS_READ, err);
}

static int allow_write(void *opaque, const char *path, struct err *err)
{
    return rules_allow(opaque, path, UINT64_MAX, err);
}

int confine_files_written(const struct confine_settings *settings, struct err *err)
{
    struct rules rules;
    int r;

    if (confine_landlock_abi() == 0)
        return 0;
    r = rules_open(&rules, (struct ruleset){.files = ACCESS_WRITE}, err);
    if (r == 0)
        r = confine_parts(settings->write, ':', allow_write, &rules, err);
    return r < 0 ? r : rules_close(&rules, err);
}

static int allow_device(struct rules *rules, const char *path, struct err *err)
{
    return rules_allow(rules, path,
                       ACCESS_READ | LANDLOCK_ACCESS_FS_WRITE_FILE | ACCESS_TRUNCATE |
                           (strcmp(path, "/dev/shm") == 0 ? UINT64_MAX : 0),
                       err);
}

int confine_files(const struct confine_settings *settings, const char *scratch, struct err *err)
{
    static const char *const devices[] = {
        "/dev/null", "/dev/zero", "/dev/full",    "/dev/random",    "/dev/urandom",   "/dev/shm",
        "/dev/dri",  "/dev/kfd",  "/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"};
    struct rules rules;
    int r;

    if (confine_landlock_abi() == 0)
        return 0;
    r = rules_open(
        &rules,
        (struct ruleset){.files = ACCESS_ABI_1 | LANDLOCK_ACCESS_FS_REFER | ACCESS_TRUNCATE}, err);
    for (size_t i = 0; r == 0 && confine_system_paths[i] != NULL; i++)
        r = allow_read(&rules, confine_system_paths[i], err);
    for (size_t i = 0; r == 0 && i < COUNT_OF(devices); i++)
        r = allow_device(&rules, devices[i], err);
    if (r == 0)
        r = allow_read(&rules, "/proc", err);
    if (r == 0)
        r = allow_read(&rules, "/proc/self/exe", err);
    if (r == 0 && settings->app[0] != '\0')
        r = allow_read(&rules, settings->app, err);
    if (r == 0)
        r = confine_parts(settings->read, ':', allow_read, &rules, err);
    if (r == 0)
        r = confine_parts(settings->write, ':', allow_write, &rules, err);
    if (r == 0)
        r = allow_write(&rules, scratch, err);
    return r < 0 ? r : rules_close(&rules, err);
}

static int allow_port(struct rules *rules, uint64_t allowed, const char *text, struct err *err)
{
    bool connect = allowed == ACCESS_NET_CONNECT_TCP;
    const char *setting = connect ? "ports" : "own-ports";
    struct port_rule rule = {.allowed = allowed};
    int64_t port;
    int r = settings_parse_int(setting, text, &port, err);

    if (r < 0)
        return r;
    if (port < connect || port > 65535)
        return err_set(err, ERR_USAGE, "--%s: '%.20s' is no port", setting, text);
    rule.port = (uint64_t)port;
    if (syscall(SYS_landlock_add_rule, rules->fd, RULE_NET_PORT, &rule, 0) < 0)
        return err_set_errno(err, ERR_UNSUPPORTED, "allow port %s by Landlock", text);
    return 0;
}

static int allow_connect(void *opaque, const char *port, struct err *err)
{
    return allow_port(opaque, ACCESS_NET_CONNECT_TCP, port, err);
}

static int allow_listen(void *opaque, const char *port, struct err *err)
{
    return allow_port(opaque, ACCESS_NET_BIND_TCP, port, err);
}

int confine_network(const struct confine_settings *settings, struct err *err)
{
    struct ruleset wanted = {0};
    struct rules rules;
    int r, abi = confine_landlock_abi();

    if (abi < ABI_NET)
        return 0;
    wanted.net = ACCESS_NET_CONNECT_TCP | ACCESS_NET_BIND_TCP;
    if (abi >= ABI_SCOPE)
        wanted.scoped = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS;
    r = rules_open(&rules, wanted, err);
    if (r == 0 && strcmp(settings->network, "out") == 0)
        r = confine_parts(settings->ports, ',', allow_connect, &rules, err);
    if (r == 0)
        r = confine_parts(settings->own_ports, ',', allow_listen, &rules, err);
    return r < 0 ? r : rules_close(&rules, err);
}

/* ---- system calls ---- */

/* What administers the machine, looks into other processes, or gets around the rules below. */
static const int refused_calls[] = {
    SCMP_SYS(ptrace),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(pidfd_getfd),
    SCMP_SYS(kcmp),
    SCMP_SYS(mount),
    SCMP_SYS(umount2),
    SCMP_SYS(move_mount),
    SCMP_SYS(open_tree),
    SCMP_SYS(fsopen),
    SCMP_SYS(fsconfig),
    SCMP_SYS(fsmount),
    SCMP_SYS(fspick),
    SCMP_SYS(mount_setattr),
    SCMP_SYS(pivot_root),
    SCMP_SYS(chroot),
    SCMP_SYS(setns),
    SCMP_SYS(unshare),
    SCMP_SYS(add_key),
    SCMP_SYS(request_key),
    SCMP_SYS(keyctl),
    SCMP_SYS(bpf),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(open_by_handle_at),
    SCMP_SYS(name_to_handle_at),
    SCMP_SYS(kexec_load),
    SCMP_SYS(kexec_file_load),
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(delete_module),
    SCMP_SYS(swapon),
    SCMP_SYS(swapoff),
    SCMP_SYS(reboot),
    SCMP_SYS(acct),
    SCMP_SYS(quotactl),
    SCMP_SYS(settimeofday),
    SCMP_SYS(clock_settime),
    SCMP_SYS(clock_adjtime),
    SCMP_SYS(adjtimex),
    SCMP_SYS(syslog),
    SCMP_SYS(sethostname),
    SCMP_SYS(setdomainname),
    SCMP_SYS(iopl),
    SCMP_SYS(ioperm),
    SCMP_SYS(vhangup),
};

/* Programs find out that these are not there, and do without. */
static const int unknown_calls[] = {
    SCMP_SYS(clone3), /* its flags cannot be looked at */
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),
};

static int refuse(scmp_filter_ctx filter, int call)
{
    int r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 0);

    return r == -EFAULT || r == -EINVAL ? 0 : r; /* this machine has no such call */
}

/* The kernel looks at the low half of an int; so do these rules, or a bit above it would get past
 * them. */
#define ARG_IS(arg, value) ARG_HAS(arg, 0xffffffffu, value)
#define ARG_HAS(arg, mask, value)                                                                  \
    ((struct scmp_arg_cmp){(arg), SCMP_CMP_MASKED_EQ, (scmp_datum_t)(mask), (scmp_datum_t)(value)})

static int refuse_if(scmp_filter_ctx filter, int code, int call, struct scmp_arg_cmp when)
{
    return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO((uint16_t)code), call, 1, &when);
}

/* Landlock's rules of TCP are asked by connect(2) of TCP: not for a connection that is made with
 * the first packet, nor for other protocols that speak TCP to those who know them not (MPTCP, SMC:
 * numbers above 255). */
static int refuse_ways_around(scmp_filter_ctx filter)
{
    static const int protocols[] = {IPPROTO_DCCP, IPPROTO_SCTP, IPPROTO_UDPLITE};
    static const struct {
        int call;
        unsigned flags_at;
    } sends[] = {{SCMP_SYS(sendto), 3}, {SCMP_SYS(sendmsg), 2}, {SCMP_SYS(sendmmsg), 3}};
    int r = 0;

    for (size_t i = 0; r == 0 && i < COUNT_OF(sends); i++)
        r = refuse_if(filter, EPERM, sends[i].call,
                      ARG_HAS(sends[i].flags_at, MSG_FASTOPEN, MSG_FASTOPEN));
    for (size_t i = 0; r == 0 && i < COUNT_OF(protocols); i++)
        r = refuse_if(filter, EPROTONOSUPPORT, SCMP_SYS(socket), ARG_IS(2, protocols[i]));
    for (unsigned bit = 8; r == 0 && bit < 32; bit++)
        r = refuse_if(filter, EPROTONOSUPPORT, SCMP_SYS(socket), ARG_HAS(2, 1u << bit, 1u << bit));
    return r;
}

/* Of sockets: only those of the families that are named. Where other programs' sockets can be seen
 * there are none of files, which Landlock does not look at. */
static int refuse_sockets(scmp_filter_ctx filter, bool no_connect, bool local)
{
    static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};
    int r = refuse_ways_around(filter);

    for (int family = 0; r == 0 && family < AF_MAX; family++) {
        bool allowed = false;

        for (size_t i = local ? 0 : 1; i < COUNT_OF(families); i++)
            allowed = allowed || families[i] == family;
        if (!allowed)
            r = refuse_if(filter, EAFNOSUPPORT, SCMP_SYS(socket), ARG_IS(0, family));
    }
    for (unsigned bit = 8; r == 0 && bit < 32; bit++)
        r = refuse_if(filter, EAFNOSUPPORT, SCMP_SYS(socket), ARG_HAS(0, 1u << bit, 1u << bit));
    if (r == 0 && !local) /* of a pair, too, a packet can be sent elsewhere */
        r = refuse_if(filter, EPERM, SCMP_SYS(socketpair), ARG_HAS(1, 0xf, SOCK_DGRAM));
    if (r == 0 && no_connect)
        r = refuse(filter, SCMP_SYS(connect));
    for (size_t i = 1; r == 0 && no_connect && i < COUNT_OF(families); i++) {
        const struct scmp_arg_cmp packets[] = {ARG_IS(0, families[i]), ARG_HAS(1, 0xf, SOCK_DGRAM)};

        if (families[i] != AF_NETLINK)
            r = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(socket), 2, packets);
    }
    return r;
}

/* Of another process of this user, which Landlock does not keep apart; 0 is the caller itself. */
static int refuse_others(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp other = {0, SCMP_CMP_NE, 0, 0}, other_second = {1, SCMP_CMP_NE, 0, 0};
    int r = refuse_if(filter, EPERM, SCMP_SYS(prlimit64), other);

    if (r == 0)
        r = refuse_if(filter, EPERM, SCMP_SYS(setpriority), other_second);
    if (r == 0)
        r = refuse_if(filter, EPERM, SCMP_SYS(setpriority), ARG_IS(0, PRIO_USER));
    if (r == 0)
        r = refuse_if(filter, EPERM, SCMP_SYS(ioprio_set), other_second);
    if (r == 0)
        r = refuse_if(filter, EPERM, SCMP_SYS(ioprio_set), ARG_IS(0, IOPRIO_WHO_USER));
    return r;
}

static int refuse_namespaces(scmp_filter_ctx filter)
{
    static const uint64_t flags[] = {CLONE_NEWUSER, CLONE_NEWNS,  CLONE_NEWNET,   CLONE_NEWPID,
                                     CLONE_NEWIPC,  CLONE_NEWUTS, CLONE_NEWCGROUP};
    int r = 0;

    for (size_t i = 0; r == 0 && i < COUNT_OF(flags); i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
                             SCMP_A0(SCMP_CMP_MASKED_EQ, flags[i], flags[i]));
    return r;
}

int confine_calls(bool no_connect, bool local, struct err *err)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int r = 0;

    if (filter == NULL)
        return err_set(err, ERR_MEMORY, "make a filter of system calls");
    for (size_t i = 0; r == 0 && i < COUNT_OF(refused_calls); i++)
        r = refuse(filter, refused_calls[i]);
    for (size_t i = 0; r == 0 && i < COUNT_OF(unknown_calls); i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), unknown_calls[i], 0);
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1,
                             SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffffu, TIOCSTI));
    if (r == 0)
        r = refuse_namespaces(filter);
    if (r == 0)
        r = refuse_sockets(filter, no_connect, local);
    if (r == 0 && !local)
        r = refuse_others(filter);
    if (r == 0)
        r = seccomp_load(filter);
    seccomp_release(filter);
    return r < 0 ? err_set(err, ERR_UNSUPPORTED, "filter system calls: %s", strerror(-r)) : 0;
}

int confine_drop_capabilities(struct err *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};

    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        (void)prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (syscall(SYS_capset, &head, none) < 0)
        return err_set_errno(err, ERR_UNSUPPORTED, "give up capabilities");
    return 0;
}
