// SPDX-License-Identifier: Apache-2.0

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads results from a result topic (docs/kafka.md) and prints a line a job.
 *
 * <pre>
 *     javac -cp 'kafka/libs/*' Consumer.java
 *     java -cp 'kafka/libs/*:.' Consumer BOOTSTRAP TOPIC [GROUP]        until Ctrl-C
 * </pre>
 *
 * A job may come more than once: what was done for (request id, round) is not done again. Here a set
 * remembers; a program that must not forget keeps it where it keeps its results, in the same transaction.
 * Offsets are committed after that, never before.
 */
public final class Consumer {
    private static String header(ConsumerRecord<byte[], byte[]> record, String name) {
        Header found = record.headers().lastHeader(name);
        return found == null || found.value() == null ? "" : new String(found.value(), StandardCharsets.UTF_8);
    }

    private static Properties properties(String bootstrap, String group) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("group.id", group);
        properties.put("auto.offset.reset", "earliest");
        properties.put("enable.auto.commit", "false");
        properties.put("key.deserializer", ByteArrayDeserializer.class.getName());
        properties.put("value.deserializer", ByteArrayDeserializer.class.getName());
        return properties;
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 2) {
            System.err.println("usage: Consumer BOOTSTRAP TOPIC [GROUP]");
            System.exit(1);
        }
        String group = arguments.length > 2 ? arguments[2] : "example-java";
        ObjectMapper mapper = new ObjectMapper();
        Set<String> done = new HashSet<>();
        KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties(arguments[0], group));
        Thread main = Thread.currentThread();

        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            consumer.wakeup();
            try {
                main.join(5000);
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
        }));
        consumer.subscribe(List.of(arguments[1]));
        try {
            while (true) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(500))) {
                    String id = header(record, "headrace-request-id");
                    String round = header(record, "headrace-round");
                    if (!done.add(id + "/" + round)) {
                        continue;
                    }
                    JsonNode body = mapper.readTree(record.value());
                    String key = record.key() == null ? "" : new String(record.key(), StandardCharsets.UTF_8);
                    System.out.println(id + " " + round + " " + body.path("model_id").asText() + " "
                            + header(record, "headrace-status") + " key=" + key + " " + body.path("data"));
                }
                consumer.commitSync();
            }
        } catch (WakeupException stopped) {
            System.out.flush();
        } finally {
            consumer.close();
        }
    }
}
