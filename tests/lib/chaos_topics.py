# SPDX-License-Identifier: Apache-2.0
"""Load of the cells that hurt `ingest`: besides the requests over HTTP, records of a bound topic in four
partitions, whose results go to another. A record is accepted once Kafka has it."""

import time

import chaos_load
import ingests
import kafka

PARTITIONS = 4
RECORDS = 40  # a call


class TopicLoad(chaos_load.Load):
    def __init__(self, world, name, *arguments, **more):
        self.stack, self.name, self.sent = world.stack, name, []
        kafka.make_topics(self.stack.url("kafka"), [name, f"{name}.out"], PARTITIONS)
        ingests.bind(self.stack, name, topic=name, result_topic=f"{name}.out", tags=name)
        super().__init__(*arguments, **more)

    def records(self):
        """Some more of them."""
        first = len(self.sent)
        kafka.produce(self.stack.url("kafka"), self.name,
                      [(b"%d" % (first + n), b'{"text": "x"}') for n in range(RECORDS)])
        self.sent += [time.time()] * RECORDS

    def stop(self):
        """Their jobs are counted with those of the requests; what differs is odd."""
        super().stop()
        try:
            ingests.wait_custody(self.stack, self.name, len(self.sent))
        except Exception as error:  # whatever it is, it is the verdict of this cell
            self.odd.append(f"records: {error}")
        jobs = ingests.tagged(self.stack, self.name)
        self.accepted += [chaos_load.Accepted(job, max(self.sent), False) for job in jobs]
        self.stack.http("DELETE", f"/v1/topics/{self.name}")
        return self.accepted
