// SPDX-License-Identifier: Apache-2.0
// BullMQ as a peer of `bench/run peers`: one add() a job, one worker process, results kept in Redis.
//
//   node bullmq.mjs worker  redis://HOST:PORT CONCURRENCY
//   node bullmq.mjs peak    redis://HOST:PORT JOBS IN_FLIGHT
//   node bullmq.mjs latency redis://HOST:PORT RATE SECONDS
//   node bullmq.mjs chain   redis://HOST:PORT STEPS RUNS     a flow: each job is the parent of the one before it
//   node bullmq.mjs fan     redis://HOST:PORT WIDTH RUNS     a parent of so many children
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq';
import Redis from 'ioredis';
import { input, latency, main, peak, turns } from './common.mjs';

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

const one = () => ({ name: 'n', queueName: name, data: { input } });

function steps(length) {
    let flow = one();
    for (let i = 1; i < length; i++) flow = { ...one(), children: [flow] };
    return flow;
}

const children = (width) => ({ ...one(), children: Array.from({ length: width }, one) });

const runFlow = (make) => (url, size, runs) => {
    const connection = connect(url);
    return turns(runs, async (done) => {
        const flows = new FlowProducer({ connection });
        const events = new QueueEvents(name, { connection });
        await events.waitUntilReady();
        events.on('completed', ({ jobId }) => done(jobId));
        return (jobId) => flows.add({ ...make(size), opts: { jobId } });
    });
};

await main(worker, { peak: runPeak, latency: runLatency, chain: runFlow(steps), fan: runFlow(children) });
