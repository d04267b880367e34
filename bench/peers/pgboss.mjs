// SPDX-License-Identifier: Apache-2.0
// pg-boss as a peer of `bench/run peers`: one send() a job, one worker process that fetches 500 at once,
// outputs kept in its own rows.
//
//   node pgboss.mjs worker  postgresql://… CONCURRENCY
//   node pgboss.mjs peak    postgresql://… JOBS IN_FLIGHT
//   node pgboss.mjs latency postgresql://… RATE SECONDS
import pg from 'pg';
import { PgBoss } from 'pg-boss';
import { input, latency, main, peak, sleep } from './common.mjs';

const name = 'bench';

async function started(url, max) {
    const boss = new PgBoss({ connectionString: url, max, useListenNotify: true });
    boss.on('error', (error) => console.error(String(error)));
    boss.on('warning', () => {});
    await boss.start();
    await boss.createQueue(name, { notify: true });
    return boss;
}

async function worker(url) {
    const boss = await started(url, 10);
    const options = { batchSize: 500, localConcurrency: 2, pollingIntervalSeconds: 0.5, notifyPollingIntervalSeconds: 0.5, burstWhenBatchFull: true, perJobResults: true };
    await boss.work(name, options, async (jobs) => jobs.map(({ id }) => ({ id, status: 'completed', output: { output: input } })));
}

async function runPeak(url, jobs, inFlight) {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    const boss = await started(url, inFlight);
    const count = `SELECT count(*) AS n FROM pgboss.job WHERE name = '${name}' AND state = 'completed'`;
    const finished = async () => Number((await client.query(count)).rows[0].n);
    return peak(jobs, inFlight, () => boss.send(name, { input }), finished);
}

// It tells nobody of a result: whoever waits looks each millisecond.
async function runLatency(url, rate, seconds) {
    const pool = new pg.Pool({ connectionString: url, max: 10 });
    const boss = await started(url, 10);
    const text = `SELECT output FROM pgboss.job WHERE name = '${name}' AND id = $1 AND state = 'completed'`;
    return latency(rate, seconds, async (done) => async (id) => {
        const job = await boss.send(name, { input });
        void (async () => {
            while ((await pool.query({ name: 'look', text, values: [job] })).rows.length === 0) await sleep(1);
            done(id);
        })();
    });
}

await main(worker, { peak: runPeak, latency: runLatency });
