// SPDX-License-Identifier: Apache-2.0
// What the drivers of the peers in Node share: the clock, percentiles, and the two loads.

export const input = 'x'.repeat(256);
export const now = () => performance.timeOrigin + performance.now();
export const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

function percentiles(values, prefix) {
    values.sort((a, b) => a - b);
    const at = (share) => values[Math.min(values.length - 1, Math.floor(values.length * share))];
    return { [`${prefix}_p50_ms`]: at(0.5), [`${prefix}_p99_ms`]: at(0.99), [`${prefix}_p999_ms`]: at(0.999) };
}

// Closed loop: add() one job a call, so many calls at once, until finished() has grown by `jobs`.
export async function peak(jobs, inFlight, add, finished) {
    const before = await finished();
    let taken = 0;
    const submit = async () => { while (taken < jobs) { taken++; await add(); } };
    const began = now();
    await Promise.all(Array.from({ length: inFlight }, submit));
    let count;
    while ((count = (await finished()) - before) < jobs) await sleep(10);
    return { seconds: (now() - began) / 1e3, sent: jobs, delivered: count };
}

// Open loop: jobs are due at fixed times, and a late one counts from when it was due. add(id) submits,
// and whoever hears of a result calls done(id).
export async function latency(rate, seconds, open) {
    const waiting = new Map(), submits = [], results = [];
    const add = await open((id) => waiting.get(String(id))?.());
    const one = async (i, due) => {
        const id = `${process.pid}-${i}`;
        const done = new Promise((resolve) => waiting.set(id, resolve));
        await add(id);
        submits.push(now() - due);
        await done;
        results.push(now() - due);
        waiting.delete(id);
    };
    const began = now() + 1000, all = [];
    for (let i = 0; i < rate * seconds; i++) {
        const due = began + (i * 1000) / rate;
        const wait = due - now();
        if (wait > 0) await sleep(wait);
        all.push(one(i, due));
    }
    await Promise.all(all);
    return { sent: all.length, delivered: results.length, ...percentiles(submits, 'submit'), ...percentiles(results, 'result') };
}

// One after the other, with a pause between: how long each took. add(id) and done(id) as above.
export async function turns(runs, open) {
    const waiting = new Map(), ms = [];
    const add = await open((id) => waiting.get(String(id))?.());
    for (let i = 0; i < runs; i++) {
        await sleep(20);
        const id = `${process.pid}-${i}`, began = now();
        const done = new Promise((resolve) => waiting.set(id, resolve));
        await add(id);
        await done;
        ms.push(now() - began);
        waiting.delete(id);
    }
    return { ms };
}

// node DRIVER worker|LOAD URL NUMBER NUMBER, where loads are peak, latency and more; each prints one JSON object.
export async function main(worker, loads) {
    const [mode, url, first, second] = process.argv.slice(2);
    if (mode === 'worker') return worker(url, Number(first), second);
    console.log(JSON.stringify(await loads[mode](url, Number(first), Number(second))));
    process.exit(0);
}
