// SPDX-License-Identifier: Apache-2.0
// BullMQ as a peer of `bench/run peers`: one add() a job, one worker process, results kept in Redis.
//
//   node bullmq.mjs worker  redis://HOST:PORT CONCURRENCY
//   node bullmq.mjs peak    redis://HOST:PORT JOBS IN_FLIGHT
//   node bullmq.mjs latency redis://HOST:PORT RATE SECONDS
import { Queue, QueueEvents, Worker } from 'bullmq';
import Redis from 'ioredis';
import { input, latency, main, peak } from './common.mjs';

const name = 'bench';
const connect = (url) => ({ host: new URL(url).hostname, port: Number(new URL(url).port), maxRetriesPerRequest: null });

function worker(url, concurrency) {
    new Worker(name, async () => ({ output: input }), { connection: connect(url), concurrency });
}

function runPeak(url, jobs, inFlight) {
    const connection = connect(url);
    const redis = new Redis(connection), queue = new Queue(name, { connection });
    return peak(jobs, inFlight, () => queue.add('n', { input }), () => redis.zcard(`bull:${name}:completed`));
}

function runLatency(url, rate, seconds) {
    const connection = connect(url);
    return latency(rate, seconds, async (done) => {
        const queue = new Queue(name, { connection });
        const events = new QueueEvents(name, { connection });
        await events.waitUntilReady();
        events.on('completed', ({ jobId }) => done(jobId));
        return (jobId) => queue.add('n', { input }, { jobId });
    });
}

await main(worker, runPeak, runLatency);
