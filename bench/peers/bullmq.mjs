// SPDX-License-Identifier: Apache-2.0
// BullMQ as a peer of `bench/run async`: one add() a job, one worker process, results kept.
//
//   node bullmq.mjs worker  HOST PORT CONCURRENCY
//   node bullmq.mjs peak    HOST PORT JOBS IN_FLIGHT   prints {"seconds"}
//   node bullmq.mjs latency HOST PORT RATE SECONDS     prints submit and result latencies in ms
//
// latency is open loop: jobs are due at fixed times, and a late one counts from when it was due.
import { Queue, QueueEvents, Worker } from 'bullmq';
import Redis from 'ioredis';

const [mode, host, port, first, second] = process.argv.slice(2);
const connection = { host, port: Number(port), maxRetriesPerRequest: null };
const input = 'x'.repeat(256);
const name = 'bench';
const now = () => performance.timeOrigin + performance.now();

function percentiles(values, prefix) {
    values.sort((a, b) => a - b);
    const at = (share) => values[Math.min(values.length - 1, Math.floor(values.length * share))];
    return { [`${prefix}_p50_ms`]: at(0.5), [`${prefix}_p99_ms`]: at(0.99), [`${prefix}_p999_ms`]: at(0.999) };
}

async function peak(jobs, inFlight) {
    const redis = new Redis(connection);
    const queue = new Queue(name, { connection });
    const completed = () => redis.zcard(`bull:${name}:completed`);
    const before = await completed();
    let taken = 0;
    const submit = async () => { while (taken < jobs) { taken++; await queue.add('n', { input }); } };
    const began = now();
    await Promise.all(Array.from({ length: inFlight }, submit));
    while ((await completed()) < before + jobs) await new Promise((go) => setTimeout(go, 10));
    return { seconds: (now() - began) / 1e3, sent: jobs, delivered: (await completed()) - before };
}

async function latency(rate, seconds) {
    const queue = new Queue(name, { connection });
    const events = new QueueEvents(name, { connection });
    await events.waitUntilReady();
    const waiting = new Map(), submits = [], results = [];
    events.on('completed', ({ jobId }) => waiting.get(jobId)?.());
    const one = async (i, due) => {
        const jobId = `${process.pid}-${i}`;
        const done = new Promise((resolve) => waiting.set(jobId, resolve));
        await queue.add('n', { input }, { jobId });
        submits.push(now() - due);
        await done;
        results.push(now() - due);
        waiting.delete(jobId);
    };
    const began = now() + 1000, all = [];
    for (let i = 0; i < rate * seconds; i++) {
        const due = began + (i * 1000) / rate;
        const wait = due - now();
        if (wait > 0) await new Promise((go) => setTimeout(go, wait));
        all.push(one(i, due));
    }
    await Promise.all(all);
    return { sent: all.length, delivered: results.length, ...percentiles(submits, 'submit'), ...percentiles(results, 'result') };
}

if (mode === 'worker') {
    new Worker(name, async () => ({ output: input }), { connection, concurrency: Number(first) });
} else {
    const run = mode === 'peak' ? peak : latency;
    console.log(JSON.stringify(await run(Number(first), Number(second))));
    process.exit(0);
}
