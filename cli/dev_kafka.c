/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Apache Kafka, one node in KRaft mode, from the jars that scripts/kafka/fetch keeps.
 *
 * Happy path: format the log directory under a name of its own and rename it, so that a run cut
 * off in between formats anew; write server.properties for today's ports; start; ask for
 * metadata until the answer carries the cluster id that we formatted. A broker of somebody
 * else on that port has another id and is never spoken to again.
 *
 * Durability: one node acknowledges from the page cache. It survives kill -9, not power loss.
 */

#include <dirent.h>
#include <librdkafka/rdkafka.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "brokers/queue_embedded.h"
#include "cli/dev.h"
#include "cli/dev_files.h"

enum { CLUSTER_ID_SIZE = 16, META_SIZE_MAX = 4096, JAVA_MAJOR_MIN = 17, PROBE_MS = 150 };

/* --- a Java of version 17 or later -------------------------------------------------------- */

static int java_major(const char *java)
{
    OWNED(mem_free) char *line = xasprintf("'%s' -version 2>&1", java);
    char text[256];
    const char *at = NULL;
    int major = 0;
    FILE *out;

    if (strchr(java, '\'') != NULL)
        return 0;
    out = popen(line, "re");
    if (out == NULL)
        return 0;
    while (fgets(text, sizeof(text), out) != NULL)
        if (at == NULL && (at = strstr(text, "version \"")) != NULL)
            major = (int)strtoul(at + strlen("version \""), NULL, 10);
    (void)pclose(out);
    return major;
}

/* Java ≥ 17 is the same for a whole run, and asking one costs 30 ms. To be freed; NULL: none. */
static char *java_find(void)
{
    static const char *const debian[] = {"/usr/lib/jvm/java-17-openjdk-amd64/bin",
                                         "/usr/lib/jvm/java-17-openjdk-arm64/bin",
                                         "/usr/lib/jvm/default-java/bin", NULL};
    const char *home = getenv("JAVA_HOME");
    char *java;

    if (home != NULL && *home != '\0') {
        java = xasprintf("%s/bin/java", home);
        if (access(java, X_OK) == 0 && java_major(java) >= JAVA_MAJOR_MIN)
            return java;
        mem_free(&java);
    }
    java = dev_program_find("java", NULL);
    if (java != NULL && java_major(java) >= JAVA_MAJOR_MIN)
        return java;
    mem_free(&java);
    for (const char *const *directory = debian; *directory != NULL; directory++) {
        java = xasprintf("%s/java", *directory);
        if (access(java, X_OK) == 0 && java_major(java) >= JAVA_MAJOR_MIN)
            return java;
        mem_free(&java);
    }
    return NULL;
}

static int java_command(struct dev *dev, struct dev_service *service, struct dev_command *command,
                        struct err *err)
{
    OWNED(mem_free) char *libs = xasprintf("%s/kafka/libs", dev->deps_dir);

    if (!dev_file_exists(libs))
        return err_set(err, ERR_DEPENDENCY,
                       "Kafka's jars are not in %s; scripts/kafka/fetch puts them there", libs);
    command->program = java_find();
    if (command->program == NULL)
        return err_set(err, ERR_DEPENDENCY,
                       "no Java of version %d or later in JAVA_HOME, PATH or /usr/lib/jvm",
                       JAVA_MAJOR_MIN);
    dev_command_set_server_env(dev, command);
    command->death_signal = SIGKILL;
    dev_command_arg(command, "java");
    dev_command_arg(command, "-XX:+UseSerialGC");
    dev_command_arg(command, "-Djava.awt.headless=true");
    /* A temporary directory mounted noexec would break the native compression libraries. */
    dev_command_arg(command, "-Djava.io.tmpdir=%s/tmp", service->directory);
    dev_command_arg(command, "-Dlog4j.configuration=file:%s/log4j.properties", service->directory);
    dev_command_arg(command, "-cp");
    dev_command_arg(command, "%s/*", libs);
    return 0;
}

/* --- files -------------------------------------------------------------------------------- */

static const char log4j_text[] =
    "log4j.rootLogger=INFO, out\n"
    "log4j.appender.out=org.apache.log4j.ConsoleAppender\n"
    "log4j.appender.out.layout=org.apache.log4j.PatternLayout\n"
    "log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %p %m (%c{1})%n\n"
    "log4j.logger.kafka.server.KafkaConfig=WARN\n"
    "log4j.logger.org.apache.kafka.clients=WARN\n"
    "log4j.logger.org.apache.kafka.raft=WARN\n"
    "log4j.logger.org.apache.kafka.common.config=WARN\n"
    "log4j.logger.org.apache.kafka.controller=WARN\n"
    "log4j.logger.org.apache.zookeeper=ERROR\n";

/* One client listener and one for the controller; small pools; topics are made by those who use
 * them. Groups are joined without Kafka's three seconds of waiting for more members. After a
 * kill -9 the controller refuses the new broker until the session of the old one is over. */
static const char properties_text[] = "process.roles=broker,controller\n"
                                      "node.id=1\n"
                                      "controller.quorum.voters=1@127.0.0.1:%2$u\n"
                                      "listeners=CLIENT://127.0.0.1:%1$u,"
                                      "CONTROLLER://127.0.0.1:%2$u\n"
                                      "advertised.listeners=CLIENT://127.0.0.1:%1$u\n"
                                      "controller.listener.names=CONTROLLER\n"
                                      "inter.broker.listener.name=CLIENT\n"
                                      "listener.security.protocol.map=CLIENT:PLAINTEXT,"
                                      "CONTROLLER:PLAINTEXT\n"
                                      "log.dirs=%3$s\n"
                                      "num.network.threads=2\n"
                                      "num.io.threads=4\n"
                                      "num.partitions=1\n"
                                      "auto.create.topics.enable=false\n"
                                      "offsets.topic.num.partitions=4\n"
                                      "offsets.topic.replication.factor=1\n"
                                      "transaction.state.log.num.partitions=4\n"
                                      "transaction.state.log.replication.factor=1\n"
                                      "transaction.state.log.min.isr=1\n"
                                      "group.initial.rebalance.delay.ms=0\n"
                                      "broker.heartbeat.interval.ms=500\n"
                                      "broker.session.timeout.ms=3000\n"
                                      "group.min.session.timeout.ms=1000\n"
                                      "log.cleaner.dedupe.buffer.size=4194304\n"
                                      "log.retention.hours=168\n";

static int properties_write(struct dev_service *service, const char *name, const char *log_dir,
                            struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", service->directory, name);
    OWNED(mem_free)
    char *text = xasprintf(properties_text, service->ports[0], service->ports[1], log_dir);

    return dev_file_write(path, text, err);
}

static int files_write(struct dev_service *service, struct err *err)
{
    OWNED(mem_free) char *temporary = xasprintf("%s/tmp", service->directory);
    OWNED(mem_free) char *log4j = xasprintf("%s/log4j.properties", service->directory);
    int code = dev_dir_make(temporary, err);

    return code < 0 ? code : dev_file_write(log4j, log4j_text, err);
}

/* The cluster id that the log directory was formatted with. To be freed. */
static int cluster_id_read(const struct dev_service *service, char **ret_id, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/data/meta.properties", service->directory);
    OWNED(mem_free) char *text = NULL;
    int code = dev_file_read(path, META_SIZE_MAX, &text, err);
    const char *at;

    if (code < 0)
        return code;
    at = strstr(text, "cluster.id=");
    if (at == NULL)
        return err_set(err, ERR_DEPENDENCY, "%s names no cluster; headrace dev --reset", path);
    at += strlen("cluster.id=");
    *ret_id = xasprintf("%.*s", (int)strcspn(at, "\r\n"), at);
    return 0;
}

/* --- the kind ------------------------------------------------------------------------------ */

static int kafka_prepare(struct dev *dev, struct dev_service *service, struct dev_command *command,
                         struct err *err)
{
    OWNED(mem_free) char *data = xasprintf("%s/data", service->directory);
    OWNED(mem_free) char *fresh = xasprintf("%s/data.new", service->directory);
    uint8_t bytes[CLUSTER_ID_SIZE];
    char id[sodium_base64_ENCODED_LEN(CLUSTER_ID_SIZE, sodium_base64_VARIANT_URLSAFE_NO_PADDING)];
    int code;

    if (dev_file_exists(data))
        return 0;
    if ((code = files_write(service, err)) < 0 || (code = dev_dir_remove(fresh, err)) < 0 ||
        (code = properties_write(service, "format.properties", fresh, err)) < 0 ||
        (code = java_command(dev, service, command, err)) < 0)
        return code;
    rng_secret_bytes(bytes, sizeof(bytes));
    /* Kafka's own tools refuse an id that begins with a dash. */
    bytes[0] &= 0x7f;
    (void)sodium_bin2base64(id, sizeof(id), bytes, sizeof(bytes),
                            sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    dev_command_arg(command, "-Xmx128m");
    dev_command_arg(command, "-XX:TieredStopAtLevel=1");
    dev_command_arg(command, "kafka.tools.StorageTool");
    dev_command_arg(command, "format");
    dev_command_arg(command, "-t");
    dev_command_arg(command, "%s", id);
    dev_command_arg(command, "-c");
    dev_command_arg(command, "%s/format.properties", service->directory);
    return 1;
}

static int kafka_prepared(struct dev *dev, struct dev_service *service, struct err *err)
{
    OWNED(mem_free) char *data = xasprintf("%s/data", service->directory);
    OWNED(mem_free) char *fresh = xasprintf("%s/data.new", service->directory);

    (void)dev;
    if (rename(fresh, data) < 0)
        return err_set_errno(err, ERR_IO, "rename %s", fresh);
    return 0;
}

static int kafka_command(struct dev *dev, struct dev_service *service, struct dev_command *command,
                         struct err *err)
{
    OWNED(mem_free) char *data = xasprintf("%s/data", service->directory);
    int code;

    if ((code = files_write(service, err)) < 0 ||
        (code = properties_write(service, "server.properties", data, err)) < 0 ||
        (code = java_command(dev, service, command, err)) < 0)
        return code;
    dev_command_arg(command, "-Xmx512m");
    dev_command_arg(command, "-Xms64m");
    dev_command_arg(command, "-XX:+ExitOnOutOfMemoryError");
    dev_command_arg(command, "kafka.Kafka");
    dev_command_arg(command, "%s/server.properties", service->directory);
    return 0;
}

static void log_nothing(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
    (void)client;
    (void)level;
    (void)facility;
    (void)text;
}

static rd_kafka_t *client_new(const char *brokers, struct err *err)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char text[256];
    rd_kafka_t *client;

    rd_kafka_conf_set_log_cb(conf, log_nothing);
    if (rd_kafka_conf_set(conf, "bootstrap.servers", brokers, text, sizeof(text)) !=
            RD_KAFKA_CONF_OK ||
        rd_kafka_conf_set(conf, "reconnect.backoff.max.ms", "100", text, sizeof(text)) !=
            RD_KAFKA_CONF_OK) {
        rd_kafka_conf_destroy(conf);
        (void)err_set(err, ERR_USAGE, "Kafka at '%s': %s", brokers, text);
        return NULL;
    }
    client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (client == NULL) {
        rd_kafka_conf_destroy(conf);
        (void)err_set(err, ERR_INTERNAL, "a Kafka client: %s", text);
    }
    return client;
}

static void kafka_forget(struct dev_service *service)
{
    rd_kafka_t *client = TAKE(service->probe_state);

    if (client != NULL)
        rd_kafka_destroy(client);
}

/* 1 when the brokers answer, with *ret_id (to be freed with rd_kafka_mem_free) their cluster. */
static int kafka_ask(struct dev_service *service, const char *brokers, char **ret_id,
                     struct err *err)
{
    const struct rd_kafka_metadata *metadata;

    if (service->probe_state == NULL)
        service->probe_state = client_new(brokers, err);
    if (service->probe_state == NULL)
        return err->code;
    if (rd_kafka_metadata(service->probe_state, 0, NULL, &metadata, PROBE_MS) !=
        RD_KAFKA_RESP_ERR_NO_ERROR)
        return 0;
    rd_kafka_metadata_destroy(metadata);
    *ret_id = rd_kafka_clusterid(service->probe_state, PROBE_MS);
    return *ret_id == NULL ? 0 : 1;
}

static int kafka_probe(struct dev *dev, struct dev_service *service, struct err *err)
{
    OWNED(mem_free) char *own_id = NULL;
    char *id = NULL;
    bool same;
    int code;

    (void)dev;
    if (service->given)
        code = kafka_ask(service, service->url, &id, err);
    else {
        mem_free(&service->url);
        service->url = xasprintf("127.0.0.1:%u", service->ports[0]);
        if (!dev_port_answers(service->ports[0]))
            return 0;
        code = kafka_ask(service, service->url, &id, err);
    }
    if (code <= 0)
        return code;
    if (service->given) {
        rd_kafka_mem_free(NULL, id);
        return 1;
    }
    code = cluster_id_read(service, &own_id, err);
    same = code == 0 && strcmp(own_id, id) == 0;
    rd_kafka_mem_free(NULL, id);
    if (code == 0 && !same)
        return err_set(err, ERR_DEPENDENCY, "the Kafka on port %u is not ours", service->ports[0]);
    return code < 0 ? code : 1;
}

const struct dev_kind dev_kafka = {
    .name = "kafka",
    .level = DEV_LEVEL_SERVER,
    .port_count = 2,
    .stop_signal = SIGTERM,
    .ready_wait_ms = 60000,
    .stop_wait_ms = 15000,
    .prepare = kafka_prepare,
    .prepared = kafka_prepared,
    .command = kafka_command,
    .probe = kafka_probe,
    .forget = kafka_forget,
};

/* --- librdkafka's cluster inside this process ---------------------------------------------- */

static void embedded_close(struct dev_service *service)
{
    struct queue_embedded *cluster = TAKE(service->probe_state);

    queue_embedded_close(&cluster);
}

/* Ready at once. Memory only: it is for machines without Java, asked for by name, and nothing
 * falls back to it. It lives as long as
 * this process. */
static int embedded_probe(struct dev *dev, struct dev_service *service, struct err *err)
{
    struct queue_embedded *cluster = NULL;
    int code = queue_embedded_open(1, &cluster, err);

    (void)dev;
    if (code < 0)
        return code;
    service->probe_state = cluster;
    mem_free(&service->url);
    service->url = xstrdup(queue_embedded_bootstrap(cluster));
    return 1;
}

const struct dev_kind dev_kafka_embedded = {
    .name = "kafka",
    .level = DEV_LEVEL_SERVER,
    .ready_wait_ms = 5000,
    .probe = embedded_probe,
    .close = embedded_close,
};
