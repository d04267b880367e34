/* SPDX-License-Identifier: Apache-2.0 */

/*
 * PostgreSQL on TCP loopback with scram, and no socket directory: a Unix socket's path may have
 * 107 bytes, and a clone may lie deeper than that.
 *
 * PostgreSQL refuses to run as root. As root we start it in a user namespace where we are
 * another uid: the files stay root's, also below a directory of mode 0700. Where namespaces are
 * forbidden (some containers) an account is used instead, with a directory outside private homes.
 */

#include <errno.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "cli/dev.h"
#include "cli/dev_files.h"

#define DATABASE "headrace"

enum { PASSWORD_BYTES = 24, PASSWORD_SIZE_MAX = 128, MAJOR_MAX = 30, MAJOR_MIN = 15 };

/* --- where the programs and the files are -------------------------------------------------- */

/* Debian keeps them out of PATH, in a directory a version. To be freed; NULL: none. */
static char *program_find(const char *name)
{
    for (int major = MAJOR_MAX; major >= MAJOR_MIN; major--) {
        char *path = xasprintf("/usr/lib/postgresql/%d/bin/%s", major, name);

        if (access(path, X_OK) == 0)
            return path;
        mem_free(&path);
    }
    return dev_program_find(name, NULL);
}

static uint64_t text_hash(const char *text)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */

    for (; *text != '\0'; text++)
        hash = (hash ^ (uint8_t)*text) * 1099511628211u;
    return hash;
}

char *dev_postgres_account_directory(const char *data_dir)
{
    return xasprintf("/var/tmp/headrace-postgres-%016llx", (unsigned long long)text_hash(data_dir));
}

/* initdb looks its own uid up, so inside the namespace we need one that has a name: the account
 * of Debian's package, else one that every system has. */
static const struct passwd *inner_account(void)
{
    static const char *const names[] = {"postgres", "daemon", "nobody"};
    const struct passwd *found = NULL;

    for (size_t i = 0; i < COUNT_OF(names) && found == NULL; i++)
        found = getpwnam(names[i]);
    return found;
}

/* The way without namespaces: an account, and a directory outside of private homes that is its. */
static int account_take(struct dev *dev, struct dev_service *service, struct dev_command *command,
                        struct err *err)
{
    const char *account = dev->postgres_account == NULL ? "postgres" : dev->postgres_account;
    const struct passwd *found = getpwnam(account);
    int code;

    if (found == NULL || found->pw_uid == 0)
        return err_set(err, ERR_DEPENDENCY,
                       "PostgreSQL must not run as root, user namespaces are forbidden here and "
                       "there is no account '%s'; --postgres-account names another",
                       account);
    command->identity = DEV_IDENTITY_ACCOUNT;
    command->uid = found->pw_uid;
    command->gid = found->pw_gid;
    mem_free(&service->directory);
    service->directory = dev_postgres_account_directory(dev->data_dir);
    code = dev_dir_make(service->directory, err);
    if (code == 0 && chown(service->directory, found->pw_uid, found->pw_gid) < 0)
        return err_set_errno(err, ERR_IO, "chown %s", service->directory);
    return code;
}

/* Decides as whom the server runs. */
static int identity_choose(struct dev *dev, struct dev_service *service,
                           struct dev_command *command, struct err *err)
{
    static int can_map = -1;
    const struct passwd *inner = inner_account();

    command->identity = DEV_IDENTITY_SAME;
    if (geteuid() != 0)
        return 0;
    if (can_map < 0)
        can_map = dev_process_can_map_user() ? 1 : 0;
    if (dev->postgres_account != NULL || can_map == 0 || inner == NULL)
        return account_take(dev, service, command, err);
    command->identity = DEV_IDENTITY_NAMESPACE;
    command->uid = inner->pw_uid;
    command->gid = inner->pw_gid;
    return 0;
}

static int password_read(const struct dev_service *service, char **ret_password, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/password", service->directory);

    return dev_file_read(path, PASSWORD_SIZE_MAX, ret_password, err);
}

static int password_make(const struct dev_service *service, const struct dev_command *command,
                         struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/password", service->directory);
    uint8_t bytes[PASSWORD_BYTES];
    char text[PASSWORD_BYTES * 2 + 1];
    int code;

    rng_secret_bytes(bytes, sizeof(bytes));
    (void)sodium_bin2hex(text, sizeof(text), bytes, sizeof(bytes));
    code = dev_file_write(path, text, err);
    if (code == 0 && command->identity == DEV_IDENTITY_ACCOUNT &&
        chown(path, command->uid, command->gid) < 0)
        return err_set_errno(err, ERR_IO, "chown %s", path);
    return code;
}

/* --- the kind ------------------------------------------------------------------------------ */

static int postgres_prepare(struct dev *dev, struct dev_service *service,
                            struct dev_command *command, struct err *err)
{
    int code = identity_choose(dev, service, command, err);
    OWNED(mem_free) char *data = xasprintf("%s/data", service->directory);
    OWNED(mem_free) char *fresh = xasprintf("%s/data.new", service->directory);

    if (code < 0)
        return code;
    if (dev_file_exists(data))
        return 0;
    if ((code = dev_dir_remove(fresh, err)) < 0 ||
        (code = password_make(service, command, err)) < 0)
        return code;
    command->program = program_find("initdb");
    if (command->program == NULL)
        return err_set(err, ERR_DEPENDENCY,
                       "PostgreSQL %d or later is not installed; Debian's package postgresql-15",
                       MAJOR_MIN);
    dev_command_set_server_env(dev, command);
    command->death_signal = SIGKILL;
    /* It looks for its siblings beside argv[0]. */
    dev_command_arg(command, "%s", command->program);
    dev_command_arg(command, "--username=headrace");
    dev_command_arg(command, "--auth=scram-sha-256");
    dev_command_arg(command, "--pwfile=%s/password", service->directory);
    dev_command_arg(command, "--locale=C.UTF-8");
    dev_command_arg(command, "--encoding=UTF8");
    dev_command_arg(command, "--pgdata=%s", fresh);
    return 1;
}

static int postgres_prepared(struct dev *dev, struct dev_service *service, struct err *err)
{
    OWNED(mem_free) char *data = xasprintf("%s/data", service->directory);
    OWNED(mem_free) char *fresh = xasprintf("%s/data.new", service->directory);

    (void)dev;
    if (rename(fresh, data) < 0)
        return err_set_errno(err, ERR_IO, "rename %s", fresh);
    return 0;
}

static int postgres_command(struct dev *dev, struct dev_service *service,
                            struct dev_command *command, struct err *err)
{
    static const char *const settings[] = {
        "listen_addresses=127.0.0.1", "unix_socket_directories=",   "timezone=UTC",
        "log_timezone=UTC",           "log_line_prefix=%m [%p] %q", "max_connections=100",
        "shared_buffers=128MB",       "max_wal_size=1GB",           "logging_collector=off",
        "track_io_timing=on",
    };
    int code = identity_choose(dev, service, command, err);

    if (code < 0)
        return code;
    command->program = program_find("postgres");
    if (command->program == NULL)
        return err_set(err, ERR_DEPENDENCY, "PostgreSQL %d or later is not installed", MAJOR_MIN);
    dev_command_set_server_env(dev, command);
    /* Its immediate shutdown: the postmaster takes its own children along. */
    command->death_signal = SIGQUIT;
    dev_command_arg(command, "%s", command->program);
    dev_command_arg(command, "-D");
    dev_command_arg(command, "%s/data", service->directory);
    dev_command_arg(command, "-p");
    dev_command_arg(command, "%u", service->ports[0]);
    for (size_t i = 0; i < COUNT_OF(settings); i++) {
        dev_command_arg(command, "-c");
        dev_command_arg(command, "%s", settings[i]);
    }
    return 0;
}

/* 1: our database is there, after being made where it was not; 0: no answer yet. */
static int database_make(const char *server_url, struct err *err)
{
    OWNED(mem_free) char *url = xasprintf("%s/postgres?connect_timeout=2", server_url);
    PGconn *connection = PQconnectdb(url);
    PGresult *result;
    int ready = 0;

    if (PQstatus(connection) == CONNECTION_OK) {
        result = PQexec(connection, "SELECT 1 FROM pg_database WHERE datname = '" DATABASE "'");
        ready = PQresultStatus(result) == PGRES_TUPLES_OK ? 1 : 0;
        if (ready == 1 && PQntuples(result) == 0) {
            PQclear(result);
            result = PQexec(connection, "CREATE DATABASE " DATABASE);
            if (PQresultStatus(result) != PGRES_COMMAND_OK)
                ready = err_set(err, ERR_DEPENDENCY, "%s", PQresultErrorMessage(result));
        }
        PQclear(result);
    } else if (strstr(PQerrorMessage(connection), "password authentication failed") != NULL) {
        ready = err_set(err, ERR_DEPENDENCY, "the PostgreSQL that answers is not ours");
    }
    PQfinish(connection);
    return ready;
}

static int given_ask(const char *url, struct err *err)
{
    PGconn *connection = PQconnectdb(url);
    int ready = PQstatus(connection) == CONNECTION_OK ? 1 : 0;

    if (ready == 0)
        (void)err_set(err, ERR_UNAVAILABLE, "%s", PQerrorMessage(connection));
    PQfinish(connection);
    return ready;
}

static int postgres_probe(struct dev *dev, struct dev_service *service, struct err *err)
{
    OWNED(mem_free) char *password = NULL;
    OWNED(mem_free) char *server_url = NULL;
    int code;

    (void)dev;
    if (service->given)
        return given_ask(service->url, err);
    if (!dev_port_answers(service->ports[0]))
        return 0;
    code = password_read(service, &password, err);
    if (code < 0)
        return code;
    server_url = xasprintf("postgresql://headrace:%s@127.0.0.1:%u", password, service->ports[0]);
    mem_free(&service->url);
    service->url = xasprintf("%s/" DATABASE, server_url);
    return database_make(server_url, err);
}

const struct dev_kind dev_postgres = {
    .name = "postgres",
    .level = DEV_LEVEL_SERVER,
    .port_count = 1,
    .stop_signal = SIGINT, /* fast shutdown: rolls back what is open, waits for nobody */
    .ready_wait_ms = 60000,
    .stop_wait_ms = 20000,
    .prepare = postgres_prepare,
    .prepared = postgres_prepared,
    .command = postgres_command,
    .probe = postgres_probe,
};
