// One Pushline process for each test, the proxy that cuts its connections, and small ways to wait.
// Each test gets a server of its own, on port 0, in an empty directory; nothing waits by the clock where an event can be awaited.
//
// PUSHLINE_BIN: the binary (default target/debug/pushline). PUSHLINE_DRIVER: its driver. CHROMIUM: the browser.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { test as nodeTest } from 'node:test';
import { chromium } from 'playwright-core';

const ROOT = resolve(import.meta.dirname, '../..');
const BINARY = resolve(ROOT, process.env.PUSHLINE_BIN ?? 'target/debug/pushline');

/** Longer than anything takes on a loaded machine, shorter than anyone's patience. */
export const DEADLINE_MS = 20_000;

/** A test that has failed, by its name, if it is not done after a minute, or its own `timeout`: nothing here waits for ever. */
export function test(name, ...rest) {
  const run = rest.pop();
  return nodeTest(name, { timeout: 60_000, ...rest[0] }, run);
}

/** An event that must come: its value, or an error that names it. */
export async function soon(promise, what, ms = DEADLINE_MS) {
  let timer;
  const late = new Promise((_, fail) => { timer = setTimeout(() => fail(new Error(`not in ${ms} ms: ${what}`)), ms); });
  try { return await Promise.race([promise, late]); } finally { clearTimeout(timer); }
}

/** Asks until the answer is truthy. For what has no event of its own. */
export async function until(ask, what, ms = DEADLINE_MS) {
  for (const end = Date.now() + ms; ;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`not in ${ms} ms: ${what}`);
    await new Promise(done => setTimeout(done, 20));
  }
}

/** What arrives one after the other, awaited one after the other. */
export class Inbox {
  #items = [];
  #waiting = [];
  push(item) {
    const taker = this.#waiting.shift();
    if (taker) taker(item); else this.#items.push(item);
  }
  async next(what = 'the next message') {
    if (this.#items.length) return this.#items.shift();
    return soon(new Promise(done => this.#waiting.push(done)), what);
  }
  async take(n, what) {
    const taken = [];
    while (taken.length < n) taken.push(await this.next(`${what ?? 'messages'} (${taken.length} of ${n} came)`));
    return taken;
  }
  get waiting() { return this.#items.length; }
}

/**
 * Starts a server for the test `t` and ends it with it.
 * `set`: keys of the configuration; `toml`: a configuration file; `args`: more flags.
 */
export async function serve(t, { set = {}, toml, args = [] } = {}) {
  const dir = mkdtempSync(join(tmpdir(), 'pushline-clients-'));
  const flags = ['serve', '--listen', '127.0.0.1:0', '--workers', '2', '--set', 'log.format=json'];
  if (process.env.PUSHLINE_DRIVER) flags.push('--driver', process.env.PUSHLINE_DRIVER);
  for (const [key, value] of Object.entries(set)) flags.push('--set', `${key}=${value}`);
  if (toml) { writeFileSync(join(dir, 'pushline.toml'), toml); flags.push('--config', join(dir, 'pushline.toml')); }
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PUSHLINE_')));
  const child = spawn(BINARY, [...flags, ...args], { cwd: dir, env, stdio: ['ignore', 'ignore', 'pipe'] });
  const log = [];
  const exited = new Promise(done => {
    child.once('error', error => { log.push(String(error)); done(-1); });
    child.once('close', (code, signal) => done(code ?? signal));
  });
  const serving = new Promise(done => createInterface(child.stderr).on('line', line => {
    log.push(line);
    let said;
    try { said = JSON.parse(line); } catch { return; }
    if ((said.message ?? said.fields?.message) === 'serving') done(said.listen ?? said.fields.listen);
  }));
  let ending = false;
  t.after(async () => {
    const early = !ending && child.exitCode !== null;
    child.kill('SIGKILL');
    await exited;
    rmSync(dir, { recursive: true, force: true });
    if (early) throw new Error(`the server ended by itself (${child.exitCode}):\n${log.slice(-20).join('\n')}`);
    const panic = log.find(line => line.includes('panicked at'));
    if (panic) throw new Error(`the server panicked: ${panic}`);
  });
  const listen = await Promise.race([
    soon(serving, `the server serves; it said:\n${log.join('\n')}`),
    exited.then(code => { throw new Error(`the server ended (${code}) before it served:\n${log.join('\n')}`); }),
  ]);
  const port = Number(String(listen).split(',')[0].trim().match(/:(\d+)$/)[1]);
  return {
    port, log, pid: child.pid,
    url: `http://127.0.0.1:${port}`,
    ws: `ws://127.0.0.1:${port}`,
    /** Its exit code after SIGTERM. */
    async stop() { ending = true; child.kill('SIGTERM'); return soon(exited, 'the server ends after SIGTERM'); },
  };
}

/** Publishes and returns the message's id. */
export async function publish(base, channel, body, headers = { 'Content-Type': 'text/plain' }) {
  const answer = await fetch(`${base}/channels/${channel}`, { method: 'POST', body, headers, signal: AbortSignal.timeout(DEADLINE_MS) });
  const text = await answer.text();
  if (answer.status !== 201) throw new Error(`publishing to ${channel}: ${answer.status} ${text}`);
  return JSON.parse(text).published[0].id;
}

/** A channel's cursor, without messages. */
export async function head(base, channel) {
  return (await (await fetch(`${base}/channels/${channel}?limit=0`, { signal: AbortSignal.timeout(DEADLINE_MS) })).json()).cursor;
}

/**
 * A TCP proxy in front of a server that can cut, and that remembers the request heads it saw.
 * `cutAfter`: the next connections that read a channel are cut once so many bytes came after that, wherever that falls.
 */
export async function proxy(t, port) {
  const pairs = new Set();
  const state = { port, refusing: false, cutAfter: [], heads: [], answers: [] };
  const server = net.createServer(client => {
    if (state.refusing) return client.resetAndDestroy();
    const upstream = net.connect(state.port, '127.0.0.1');
    const pair = { end() { client.resetAndDestroy(); upstream.destroy(); pairs.delete(pair); } };
    pairs.add(pair);
    let asked = '', answered = '', budget = Infinity;
    client.on('data', bytes => {
      asked += bytes.toString('latin1');
      for (let end; (end = asked.indexOf('\r\n\r\n')) >= 0; asked = asked.slice(end + 4)) {
        const found = asked.slice(0, end).match(/(?:GET|POST|HEAD|OPTIONS|DELETE) [^]*$/);
        if (!found) continue;
        state.heads.push(found[0]);
        // Not what a browser asks for by itself: an icon, a connection in reserve.
        if (found[0].includes(' /channels') && state.cutAfter.length) budget = state.cutAfter.shift();
      }
      upstream.write(bytes);
    });
    upstream.on('data', bytes => {
      answered += bytes.toString('latin1');
      for (let line; (line = answered.match(/HTTP\/1\.[01] (\d{3}) /)); answered = answered.slice(line.index + line[0].length)) state.answers.push(Number(line[1]));
      answered = answered.slice(-20);
      if (bytes.length < budget) { budget -= bytes.length; client.write(bytes); return; }
      client.write(bytes.subarray(0, budget), () => pair.end());
      budget = Infinity;
    });
    client.on('end', () => upstream.end());
    upstream.on('end', () => client.end());
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      socket.on('error', () => pair.end());
      socket.on('close', () => { pairs.delete(pair); });
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const cut = () => { for (const pair of [...pairs]) pair.end(); };
  t.after(() => { cut(); server.close(); });
  const at = server.address().port;
  return Object.assign(state, {
    url: `http://127.0.0.1:${at}`, ws: `ws://127.0.0.1:${at}`, cut,
    /** Value of a header in each head seen, where it stands. */
    seen: name => state.heads.map(head => head.match(new RegExp(`^${name}: *(.*)$`, 'im'))?.[1]).filter(value => value !== undefined),
  });
}

const CHROMIUM = process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);

/** Why tests with a browser cannot run here, if so. */
export const noBrowser = CHROMIUM ? false : 'no Chromium here (apt-get install chromium, or CHROMIUM=/path)';

/** A browser of its own, with an empty profile. */
export const launch = (...args) => chromium.launch({
  executablePath: CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', ...args],
});
