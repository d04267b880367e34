// SPDX-License-Identifier: Apache-2.0
// The peer of `bench/run webhooks`: keep-alive POSTs with an HMAC each by Node's own http, and no
// row and no log of anything.   node webhook_node.mjs PORT POSTS CONNECTIONS SIZE
import http from 'http';
import {createHmac} from 'crypto';

const [port, posts, connections, size] = process.argv.slice(2).map(Number);
const body = 'x'.repeat(size);
const agent = new http.Agent({keepAlive: true, maxSockets: connections});
let sent = 0;

const post = () => new Promise((resolve, reject) => {
    const signature = createHmac('sha256', 'secretsecretsecret').update(body).digest('hex');
    const request = http.request(
        {host: '127.0.0.1', port, method: 'POST', path: '/hook', agent,
         headers: {'content-type': 'application/json', 'x-signature': signature, 'content-length': size}},
        answer => { answer.resume(); answer.on('end', resolve); });
    request.on('error', reject);
    request.end(body);
});

const began = performance.now(), used = process.cpuUsage();
await Promise.all(Array.from({length: connections}, async () => {
    while (sent < posts) { sent++; await post(); }
}));
const seconds = (performance.now() - began) / 1000, {user, system} = process.cpuUsage(used);
console.log(JSON.stringify({posts, seconds, cpu_us: (user + system) / posts}));
process.exit(0);
