# SPDX-License-Identifier: Apache-2.0
"""A Kafka of somebody else's: SASL_SSL with certificates made here, SCRAM and PLAIN, and an authorizer.

`alice` (SCRAM-SHA-512) may read the topic `open` by groups that begin with `headrace.`, and write `open.out`;
`admin` (PLAIN) may do everything. There is a topic `closed` as well, and `other.pem`, a certificate that this
broker does not have."""

import ctypes
import os
import pathlib
import shutil
import socket
import subprocess

import kafka
from stack import die_with_parent, wait_until

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username="admin" password="admin-password" user_admin="admin-password";
listener.name.client.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
log.dirs={folder}/data
num.network.threads=2
num.io.threads=2
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.dedupe.buffer.size=4194304
"""
LOG4J = """log4j.rootLogger=INFO, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.SimpleLayout
"""
# librdkafka's numbers.
TOPIC, GROUP, LITERAL, PREFIXED, READ, WRITE, ALLOW = 2, 3, 3, 4, 3, 4, 3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_certificate(folder, name):
    """folder/NAME.pem and NAME-key.pem, of itself, for 127.0.0.1."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / f"{name}-key.pem",
                    "-out", folder / f"{name}.pem"], check=True, capture_output=True)


class SecureKafka:
    def __init__(self, folder):
        self.folder, self.port = pathlib.Path(folder), free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.process = None

    def __enter__(self):
        for name in ("ca", "other"):
            make_certificate(self.folder, name)
        (self.folder / "server.pem").write_text((self.folder / "ca-key.pem").read_text() + self.pem("ca"))
        (self.folder / "log4j.properties").write_text(LOG4J)
        (self.folder / "server.properties").write_text(
            PROPERTIES.format(port=self.port, controller=free_port(), folder=self.folder))
        subprocess.run([*self.java("kafka.tools.StorageTool"), "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c",
                        self.folder / "server.properties", "--add-scram",
                        "SCRAM-SHA-512=[name=alice,password=alice-password]"],
                       check=True, capture_output=True, timeout=60)
        with open(self.folder / "kafka.log", "wb") as log:
            self.process = subprocess.Popen([*self.java("kafka.Kafka"), self.folder / "server.properties"],
                                            stdout=log, stderr=log, preexec_fn=die_with_parent)
        wait_until("the secure Kafka", self.answers, 60, 0.2)
        kafka.make_topics(self.bootstrap, ["open", "open.out", "closed"], properties=self.admin())
        self.allow([(TOPIC, "open", LITERAL, READ), (TOPIC, "open.out", LITERAL, WRITE),
                    (GROUP, "headrace.", PREFIXED, READ)])
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def pem(self, name):
        return (self.folder / f"{name}.pem").read_text()

    def java(self, name):
        java = shutil.which("java") or f"{os.environ['JAVA_HOME']}/bin/java"
        return [java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m",
                f"-Dlog4j.configuration=file:{self.folder}/log4j.properties", "-cp",
                f"{os.environ['HEADRACE_DEPS']}/kafka/libs/*", name]

    def admin(self):
        return {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "admin",
                "sasl.password": "admin-password", "ssl.ca.pem": self.pem("ca")}

    def answers(self):
        assert self.process.poll() is None, (self.folder / "kafka.log").read_text()[-2000:]
        done = subprocess.run(["kcat", "-L", "-b", self.bootstrap, *kafka.words(self.admin())], capture_output=True,
                              timeout=20)
        return done.returncode == 0

    def allow(self, rules):
        lib, client, queue, why = kafka.admin(self.bootstrap, self.admin())
        lib.rd_kafka_AclBinding_new.restype = ctypes.c_void_p
        acls = (ctypes.c_void_p * len(rules))(*(
            lib.rd_kafka_AclBinding_new(kind, name.encode(), pattern, b"User:alice", b"*", operation, ALLOW, why, len(why))
            for kind, name, pattern, operation in rules))
        assert all(acls), why.value
        lib.rd_kafka_CreateAcls(client, acls, len(rules), None, queue)
        kafka.wait_answer(lib, client, queue)
