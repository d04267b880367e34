// SPDX-License-Identifier: Apache-2.0
// graphile-worker as a peer of `bench/run peers`: one addJob() a job, one worker process with the local
// queue that its documentation gives for throughput, each result a row of a table beside it.
//
//   node graphile.mjs worker  postgresql://… CONCURRENCY {peak|latency}
//   node graphile.mjs peak    postgresql://… JOBS IN_FLIGHT
//   node graphile.mjs latency postgresql://… RATE SECONDS
import { Logger, makeWorkerUtils, run } from 'graphile-worker';
import pg from 'pg';
import { input, latency, main, peak } from './common.mjs';

const logger = new Logger(() => () => {});
const table = 'CREATE TABLE IF NOT EXISTS bench_result (id bigserial PRIMARY KEY, name text, output text)';

async function connected(url) {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    return client;
}

async function worker(url, concurrency, kind) {
    const pool = new pg.Pool({ connectionString: url, max: 30 });
    await pool.query(table);
    const quick = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
    const store = (text) => async (payload) => { await pool.query({ name: 'store', text, values: [payload.id, input] }); };
    const taskList = {
        peak: store('INSERT INTO bench_result (name, output) VALUES ($1, $2)'),
        latency: store("WITH kept AS (INSERT INTO bench_result (name, output) VALUES ($1, $2) RETURNING name) SELECT pg_notify('bench_done', name) FROM kept"),
    };
    await run({ logger, taskList, noHandleSignals: true, preset: { worker: { connectionString: url, concurrentJobs: concurrency, maxPoolSize: 30, pollInterval: 2000, ...(kind === 'peak' ? quick : {}) } } });
}

async function runPeak(url, jobs, inFlight) {
    const client = await connected(url), pgPool = new pg.Pool({ connectionString: url, max: inFlight });
    const utils = await makeWorkerUtils({ pgPool, logger });
    const finished = async () => Number((await client.query('SELECT count(*) AS n FROM bench_result')).rows[0].n);
    return peak(jobs, inFlight, () => utils.addJob('peak', { id: 'n', input }), finished);
}

async function runLatency(url, rate, seconds) {
    const listener = await connected(url);
    const utils = await makeWorkerUtils({ connectionString: url, logger });
    return latency(rate, seconds, async (done) => {
        await listener.query('LISTEN bench_done');
        listener.on('notification', ({ payload }) => done(payload));
        return (id) => utils.addJob('latency', { id, input });
    });
}

await main(worker, { peak: runPeak, latency: runLatency });
