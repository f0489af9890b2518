// Chromium: what pages meet. Its own EventSource, fetch with its cache, its WebSocket, and its rules about origins.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import { after, before } from 'node:test';
import { head, launch, noBrowser, proxy, publish, serve, test } from './harness.mjs';

let browser;
before(async () => { if (!noBrowser) browser = await launch('--host-resolver-rules=MAP evil.test 127.0.0.1'); }, { timeout: 60_000 });
after(() => browser?.close(), { timeout: 60_000 });

const options = { skip: noBrowser, timeout: 120_000 };

/** A page of the server's own origin, which does nothing by itself. */
async function page(t, base) {
  const context = await browser.newContext();
  t.after(() => context.close());
  const tab = await context.newPage();
  await tab.goto(`${base}/healthz`);
  return tab;
}

/** Waits in the page until `window.got` holds at least `n`, and returns it. */
async function got(tab, n) {
  await tab.waitForFunction(n => window.got.length >= n, n, { polling: 50, timeout: 60_000 });
  return tab.evaluate(() => window.got);
}

/** Opens an EventSource in the page that collects `[type, data, lastEventId]`. */
const listen = (tab, path, names = []) => tab.evaluate(([path, names]) => {
  window.got = [];
  window.source = new EventSource(path);
  for (const name of ['message', '$open', '$gap', '$close', ...names]) window.source.addEventListener(name, e => window.got.push([e.type, e.data, e.lastEventId]));
}, [path, names]);

test('EventSource: messages, names, line breaks, binary', options, async t => {
  const { url } = await serve(t);
  const tab = await page(t, url);
  await listen(tab, '/channels/news', ['tick', '$binary']);
  const [[type, data, id]] = await got(tab, 1);
  assert.equal(type, '$open');
  assert.equal(JSON.parse(data).cursor, id);
  const ids = [
    await publish(url, 'news', 'hello'),
    await publish(url, 'news', 'a\r\nb\rc'),
    await publish(url, 'news', '{"n":1}', { 'Content-Type': 'application/json', 'Pushline-Event': 'tick' }),
    await publish(url, 'news', Buffer.from([0, 255]), { 'Content-Type': 'application/octet-stream' }),
    await publish(url, 'news', ''),
  ];
  assert.deepEqual((await got(tab, 6)).slice(1), [
    ['message', 'hello', ids[0]], ['message', 'a\nb\nc', ids[1]], ['tick', '{"n":1}', ids[2]], ['$binary', 'AP8=', ids[3]], ['message', '', ids[4]],
  ]);
});

test('EventSource: cut in the stream, it reconnects by itself with Last-Event-ID, and nothing is lost', options, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  const tab = await page(t, through.url);
  const cursor = await head(server.url, 'cut');
  through.cutAfter = [700, 1500];
  await listen(tab, `/channels/cut?cursor=${cursor}`);
  const total = 200;
  for (let n = 1; n <= total / 2; n++) await publish(server.url, 'cut', `message ${n}`);
  await tab.waitForFunction(n => window.got.filter(e => e[0] === 'message').length >= n, total / 2, { polling: 50, timeout: 60_000 });
  through.cut();
  for (let n = total / 2 + 1; n <= total; n++) await publish(server.url, 'cut', `message ${n}`);
  await tab.waitForFunction(n => window.got.filter(e => e[0] === 'message').length >= n, total, { polling: 50, timeout: 60_000 });
  const events = await tab.evaluate(() => window.got);
  assert.deepEqual(events.filter(e => e[0] === 'message').map(e => e[1]), Array.from({ length: total }, (_, i) => `message ${i + 1}`));
  assert.deepEqual(events.filter(e => e[0] === '$gap'), []);
  const ids = through.seen('Last-Event-ID');
  assert.equal(ids.length, 3, `three reconnects, each with its id: ${ids}`);
  // Each stream opens where the page was: what a reset took away before it was read was never seen, a stream's `$open` included.
  let seen;
  for (const [type, , id] of events) {
    if (type === '$open' && seen !== undefined) {
      assert.equal(id, seen);
      assert.ok(ids.includes(id), id);
    }
    seen = id;
  }
  // The last one was not cut.
  assert.equal(events.findLast(e => e[0] === '$open')[2], ids.at(-1));
  for (const id of ids) assert.ok(events.some(e => e[2] === id), `the page has seen ${id}`);
});

test('EventSource: a gap is told after a reconnect', options, async t => {
  const server = await serve(t, { set: { 'history.messages': 3 } });
  const through = await proxy(t, server.port);
  const tab = await page(t, through.url);
  await listen(tab, '/channels/gap');
  await got(tab, 1);
  through.refusing = true;
  through.cut();
  for (let n = 1; n <= 10; n++) await publish(server.url, 'gap', `${n}`);
  through.refusing = false;
  const events = await got(tab, 6);
  assert.deepEqual(events.slice(1).map(e => e[0]), ['$open', '$gap', 'message', 'message', 'message']);
  assert.deepEqual(events.slice(3).map(e => e[1]), ['8', '9', '10']);
  assert.equal(JSON.parse(events[2][1]).channel, 'gap');
});

test('EventSource: $close when the server stops, and back at the next one', options, async t => {
  const server = await serve(t, { set: { 'drain.window_seconds': 1 } });
  const next = await serve(t);
  const through = await proxy(t, server.port);
  const tab = await page(t, through.url);
  await listen(tab, '/channels/news');
  await got(tab, 1);
  through.port = next.port;
  assert.equal(await server.stop(), 0);
  const events = await got(tab, 4);
  assert.deepEqual(events.map(e => e[0]), ['$open', '$close', '$open', '$gap']);
  assert.equal(typeof JSON.parse(events[1][1]).reconnect_ms, 'number');
  assert.equal(await tab.evaluate(() => window.source.readyState), 1);
});

test('fetch: the browser revalidates with its cache, and the server answers 304', options, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  const tab = await page(t, through.url);
  const cursor = await head(server.url, 'state');
  await publish(server.url, 'state', 'one');
  const read = () => tab.evaluate(async path => {
    const answer = await fetch(path);
    return [answer.status, answer.headers.get('ETag'), (await answer.json()).messages.map(m => m.data)];
  }, `/channels/state?cursor=${cursor}`);
  const first = await read();
  assert.deepEqual([first[0], first[2]], [200, ['one']]);
  assert.deepEqual(await read(), first);
  assert.deepEqual(through.answers.slice(-2), [200, 304]);
  assert.equal(through.seen('If-None-Match').at(-1), first[1]);
  await publish(server.url, 'state', 'two');
  assert.deepEqual((await read())[2], ['one', 'two']);
  assert.equal(through.answers.at(-1), 200);
});

test('fetch: publish, long poll, and its cursor in a header', options, async t => {
  const { url } = await serve(t);
  const tab = await page(t, url);
  const cursor = await head(url, 'wait');
  const answer = await tab.evaluate(async cursor => {
    const held = fetch(`/channels/wait?cursor=${cursor}`, { headers: { Prefer: 'wait=20' } });
    const published = await fetch('/channels/wait', { method: 'POST', body: JSON.stringify({ n: 1 }), headers: { 'Content-Type': 'application/json' } });
    const answer = await held;
    return { published: published.status, status: answer.status, cursor: answer.headers.get('Pushline-Cursor'), applied: answer.headers.get('Preference-Applied'), body: await answer.json() };
  }, cursor);
  assert.deepEqual([answer.published, answer.status, answer.applied], [201, 200, 'wait=20']);
  assert.deepEqual(answer.body.messages.map(m => m.data), [{ n: 1 }]);
  assert.equal(answer.cursor, answer.body.cursor);
});

test('fetch: a held poll that is aborted leaves no harm', options, async t => {
  const { url } = await serve(t);
  const tab = await page(t, url);
  const cursor = await head(url, 'abort');
  const name = await tab.evaluate(async cursor => {
    const abort = new AbortController();
    const held = fetch(`/channels/abort?cursor=${cursor}&wait=20`, { signal: abort.signal });
    setTimeout(() => abort.abort(), 100);
    return held.catch(error => error.name);
  }, cursor);
  assert.equal(name, 'AbortError');
  await publish(url, 'abort', 'still here');
  assert.equal(await tab.evaluate(async cursor => (await (await fetch(`/channels/abort?cursor=${cursor}`)).json()).messages[0].data, cursor), 'still here');
});

test('WebSocket: raw echo of text and binary; what is too large closes with 1009', options, async t => {
  const { url, ws } = await serve(t);
  const tab = await page(t, url);
  const answer = await tab.evaluate(async address => {
    const socket = new WebSocket(address);
    socket.binaryType = 'arraybuffer';
    const next = name => new Promise(done => socket.addEventListener(name, done, { once: true }));
    await next('open');
    const echo = async value => { socket.send(value); return (await next('message')).data; };
    const text = await echo('hello ☃'), empty = await echo(''), binary = [...new Uint8Array(await echo(new Uint8Array([0, 255])))];
    const long = (await echo('x'.repeat(65536))).length;
    socket.send('x'.repeat(65537));
    const { code, wasClean } = await next('close');
    return { protocol: socket.protocol, text, empty, binary, long, code, wasClean };
  }, `${ws}/channels/echo`);
  assert.deepEqual(answer, { protocol: '', text: 'hello ☃', empty: '', binary: [0, 255], long: 65536, code: 1009, wasClean: true });
});

test('WebSocket: pushline.v1 subscribes, publishes, is cut, and resumes', options, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  const tab = await page(t, through.url);
  await tab.evaluate(address => {
    window.got = [];
    window.cursor = undefined;
    window.connect = () => {
      window.socket = new WebSocket(address, ['pushline.v1']);
      window.socket.onopen = () => window.socket.send(JSON.stringify({ type: 'subscribe', channel: 'room', cursor: window.cursor }));
      window.socket.onmessage = e => {
        const m = JSON.parse(e.data);
        window.got.push(m);
        if (m.type === 'subscribed') window.cursor = m.cursor;
        if (m.type === 'message') window.cursor = m.id;
      };
      window.socket.onclose = () => window.connect();
    };
    window.connect();
  }, `${through.ws}/channels`);
  assert.deepEqual((await got(tab, 2)).map(m => m.type), ['open', 'subscribed']);
  await tab.evaluate(() => window.socket.send(JSON.stringify({ type: 'publish', channel: 'room', data: 'from the page', seq: 1 })));
  await got(tab, 4);
  through.refusing = true;
  through.cut();
  for (const text of ['a', 'b', 'c']) await publish(server.url, 'room', text);
  through.refusing = false;
  await tab.waitForFunction(() => window.got.filter(m => m.type === 'message').length >= 4, null, { polling: 50 });
  const all = await tab.evaluate(() => window.got);
  assert.deepEqual(all.filter(m => m.type === 'message').map(m => m.data), ['from the page', 'a', 'b', 'c']);
  assert.ok(all.filter(m => m.type === 'subscribed').every(m => m.gap === false));
});

/** A page of another origin: http://evil.test:PORT, which the browser resolves to this machine. */
async function stranger(t) {
  const server = http.createServer((request, answer) => answer.setHeader('Content-Type', 'text/html').end('<!doctype html><title>other</title>'));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => { server.closeAllConnections(); server.close(); });
  const origin = `http://evil.test:${server.address().port}`;
  const context = await browser.newContext();
  t.after(() => context.close());
  const tab = await context.newPage();
  await tab.goto(origin);
  return { origin, tab };
}

/** What a page of another origin gets when it tries everything. */
const tryAll = (tab, url) => tab.evaluate(async url => {
  const tell = promise => promise.then(async r => [r.status, r.type, r.headers.get('ETag') !== null], e => e.name);
  const json = { 'Content-Type': 'application/json' };
  return {
    read: await tell(fetch(`${url}/channels/x`)),
    publish: await tell(fetch(`${url}/channels/x`, { method: 'POST', body: '{"from":"cors"}', headers: json })),
    simple: await tell(fetch(`${url}/channels/x`, { method: 'POST', body: 'simple', mode: 'no-cors' })),
    stream: await new Promise(done => { const stream = new EventSource(`${url}/channels/x`); stream.onopen = () => done('open'); stream.onerror = () => done(stream.readyState === 2 ? 'refused' : 'retrying'); }),
    socket: await new Promise(done => { const socket = new WebSocket(`${url.replace('http', 'ws')}/channels/x`); socket.onopen = () => done('open'); socket.onclose = e => done(e.code); }),
  };
}, url);

test('a page of another origin is refused, whatever it tries, and has no effect', options, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  const { tab } = await stranger(t);
  assert.deepEqual(await tryAll(tab, through.url), { read: 'TypeError', publish: 'TypeError', simple: [0, 'opaque', false], stream: 'refused', socket: 1006 });
  assert.ok(through.answers.length >= 5 && through.answers.every(status => status === 403), `${through.answers}`);
  const { messages } = await (await fetch(`${server.url}/channels/x`)).json();
  assert.deepEqual(messages, []);
});

test('a page of an allowed origin reads and writes, and sees the headers it needs', options, async t => {
  const { origin, tab } = await stranger(t);
  const { url } = await serve(t, { toml: `[origins]\nallow = ["${origin}"]\n` });
  assert.deepEqual(await tryAll(tab, url), { read: [200, 'cors', true], publish: [201, 'cors', false], simple: [0, 'opaque', false], stream: 'open', socket: 'open' });
  const preflighted = await tab.evaluate(async url => {
    const answer = await fetch(`${url}/channels/x`, { method: 'DELETE', credentials: 'include' });
    const missing = await fetch(`${url}/channels/a//b`);
    return [answer.status, missing.status];
  }, url);
  assert.deepEqual(preflighted, [204, 400], 'errors can be read too');
});

test('another name for this machine (DNS rebinding) is refused', options, async t => {
  const server = await serve(t);
  const context = await browser.newContext();
  t.after(() => context.close());
  const tab = await context.newPage();
  const answer = await tab.goto(`http://evil.test:${server.port}/channels/x`);
  assert.ok(answer.status() >= 400 && answer.status() < 500, `${answer.status()}`);
  const local = await tab.goto(`http://localhost:${server.port}/channels/x`);
  assert.equal(local.status(), 200);
});

