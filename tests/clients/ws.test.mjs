// Node's `ws`: raw frames and pushline.v1, as libraries speak them.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import WebSocket from 'ws';
import { DEADLINE_MS, head, Inbox, proxy, publish, serve, soon, test } from './harness.mjs';

/** An open connection with its frames, pings, pongs and its close as things to await. */
async function open(t, url, protocols, options) {
  const socket = new WebSocket(url, protocols, options);
  t.after(() => socket.terminate());
  const frames = new Inbox(), pings = new Inbox(), pongs = new Inbox();
  socket.on('message', (bytes, binary) => frames.push(binary ? bytes : bytes.toString()));
  socket.on('ping', bytes => pings.push(bytes));
  socket.on('pong', bytes => pongs.push(bytes.toString()));
  socket.on('error', () => {});
  const closed = new Promise(done => socket.once('close', (code, reason) => done({ code, reason: reason.toString() })));
  await soon(once(socket, 'open'), `open ${url}`);
  const json = async what => JSON.parse(await frames.next(what));
  return { socket, frames, pings, pongs, json, close: () => soon(closed, 'the close'), say: value => socket.send(JSON.stringify(value)) };
}

/** A pushline.v1 connection, past its `open`, and past `subscribed` for the channels of its URL. */
async function v1(t, url, channels = 0) {
  const peer = await open(t, url, ['pushline.v1']);
  const first = await peer.json('open');
  assert.equal(first.type, 'open');
  assert.equal(typeof first.connection, 'string');
  peer.subscribed = [];
  for (let i = 0; i < channels; i++) peer.subscribed.push(await peer.json('subscribed'));
  return peer;
}

/** The status of a refused handshake. */
async function refusal(url, protocols, options) {
  const socket = new WebSocket(url, protocols, options);
  socket.on('error', () => {});
  const [, answer] = await soon(once(socket, 'unexpected-response'), `a refusal of ${url}`);
  answer.resume();
  return answer.statusCode;
}

test('raw: a frame comes back to its sender and goes to other readers, text as text, binary as binary', async t => {
  const server = await serve(t);
  const a = await open(t, `${server.ws}/channels/echo`), b = await open(t, `${server.ws}/channels/echo`);
  assert.equal(a.socket.protocol, '');
  assert.equal(a.socket.extensions, '');
  for (const sent of ['hello', '', 'ünï ☃ 😀', Buffer.from([0, 255, 128]), Buffer.alloc(0), 'x'.repeat(125), 'x'.repeat(126), 'x'.repeat(65_535), 'x'.repeat(65_536)]) {
    a.socket.send(sent);
    for (const peer of [a, b]) assert.deepEqual(await peer.frames.next(`echo of ${sent.length}`), sent);
  }
  await publish(server.url, 'echo', '{"over": "http"}', { 'Content-Type': 'application/json' });
  assert.equal(await a.frames.next(), '{"over": "http"}');
  const poll = await (await fetch(`${server.url}/channels/echo?cursor=${await head(server.url, 'echo')}`)).json();
  assert.deepEqual(poll.messages, []);
});

test('raw: fragments are one message, with control frames in between', async t => {
  const { ws } = await serve(t);
  const { socket, frames, pongs } = await open(t, `${ws}/channels/frag`);
  const snow = Buffer.from('☃☃');
  socket.send(snow.subarray(0, 2), { fin: false, binary: false });
  socket.ping('between');
  assert.equal(await pongs.next('a pong between fragments'), 'between');
  socket.send(snow.subarray(2, 5), { fin: false, binary: false });
  socket.send(snow.subarray(5), { fin: true, binary: false });
  assert.equal(await frames.next(), '☃☃');
  socket.send(Buffer.from([1]), { fin: false, binary: true });
  socket.send(Buffer.alloc(0), { fin: false, binary: true });
  socket.send(Buffer.from([2]), { fin: true, binary: true });
  assert.deepEqual(await frames.next(), Buffer.from([1, 2]));
});

test('raw: resumed into with a cursor', async t => {
  const server = await serve(t);
  const cursor = await head(server.url, 'r');
  for (const text of ['1', '2', '3']) await publish(server.url, 'r', text);
  const { frames } = await open(t, `${server.ws}/channels/r?cursor=${cursor}`);
  await publish(server.url, 'r', '4');
  assert.deepEqual(await frames.take(4), ['1', '2', '3', '4']);
});

test('raw: where a gap would have to be told it closes with 4408', async t => {
  const server = await serve(t);
  const cursor = await head(server.url, 'g');
  await publish(server.url, 'g', 'x');
  await fetch(`${server.url}/channels/g`, { method: 'DELETE' });
  const peer = await open(t, `${server.ws}/channels/g?cursor=${cursor}`);
  assert.equal((await peer.close()).code, 4408);
});

test('ping and pong, both ways', async t => {
  const { ws } = await serve(t, { set: { 'heartbeat.interval_seconds': 0.2, 'heartbeat.timeout_seconds': 0.8 } });
  const alive = await open(t, `${ws}/channels/life`);
  const dead = await open(t, `${ws}/channels/life`, [], { autoPong: false });
  alive.socket.ping('are you there');
  assert.equal(await alive.pongs.next(), 'are you there');
  await alive.pings.next('a ping of the server');
  await dead.close();
  // Three more pings: the one that answers outlives the other.
  for (let i = 0; i < 3; i++) await alive.pings.next('pings go on');
  assert.equal(alive.socket.readyState, WebSocket.OPEN);
});

test('close codes', async t => {
  const server = await serve(t, { set: { 'drain.window_seconds': 0.2 } });
  const url = `${server.ws}/channels/end`;
  for (const [sent, expected] of [[1000, 1000], [1001, 1001], [3000, 3000], [4999, 4999]]) {
    const peer = await open(t, url);
    peer.socket.close(sent, 'bye');
    assert.equal((await peer.close()).code, expected);
  }
  const plain = await open(t, url);
  plain.socket.close();
  assert.ok([1000, 1005].includes((await plain.close()).code));

  const big = await open(t, url);
  big.socket.send('x'.repeat(65_537));
  assert.equal((await big.close()).code, 1009);
  const fragments = await open(t, url);
  for (let i = 0; i < 2; i++) fragments.socket.send('x'.repeat(40_000), { fin: false });
  assert.equal((await fragments.close()).code, 1009);

  const text = await open(t, url);
  text.socket.send(Buffer.from([0xff, 0xfe]), { binary: false });
  assert.equal((await text.close()).code, 1007);
  const rsv = await open(t, url);
  rsv.socket._socket.write(Buffer.from([0xc1, 0x80, 0, 0, 0, 0]));
  assert.equal((await rsv.close()).code, 1002);
  const unmasked = await open(t, url);
  unmasked.socket._socket.write(Buffer.from([0x81, 0x01, 0x61]));
  assert.equal((await unmasked.close()).code, 1002);

  const v1binary = await v1(t, `${server.ws}/channels`);
  v1binary.socket.send(Buffer.from('{}'), { binary: true });
  assert.equal((await v1binary.close()).code, 1003);

  const last = await open(t, url), lastV1 = await v1(t, url, 1);
  assert.equal(await server.stop(), 0);
  assert.equal((await last.close()).code, 1012);
  const closing = await lastV1.json('closing');
  assert.equal(closing.type, 'closing');
  assert.equal(typeof closing.reconnect_ms, 'number');
  assert.equal((await lastV1.close()).code, 1012);
});

test('refused handshakes', async t => {
  const server = await serve(t);
  assert.equal(await refusal(`${server.ws}/channels/x`, ['chat']), 400);
  assert.equal(await refusal(`${server.ws}/channels/a,b`), 400, 'raw is one channel');
  assert.equal(await refusal(`${server.ws}/channels/a//b`), 400);
  assert.equal(await refusal(`${server.ws}/nowhere`), 404);
  assert.equal(await refusal(`${server.ws}/channels/x`, [], { headers: { Origin: 'http://evil.test' } }), 403);
  assert.equal(await refusal(`${server.ws}/channels/x`, [], { protocolVersion: 8 }), 426);
});

test('v1 is chosen wherever it stands in the list', async t => {
  const { ws } = await serve(t);
  const peer = await open(t, `${ws}/channels/x`, ['chat', 'pushline.v1', 'other']);
  assert.equal(peer.socket.protocol, 'pushline.v1');
});

test('v1: subscribe, publish, receive, unsubscribe', async t => {
  const server = await serve(t);
  const a = await v1(t, `${server.ws}/channels`), b = await v1(t, `${server.ws}/channels/room`, 1);
  assert.deepEqual([b.subscribed[0].type, b.subscribed[0].channel, b.subscribed[0].gap], ['subscribed', 'room', false]);
  a.say({ type: 'subscribe', channel: 'room', seq: 7 });
  const subscribed = await a.json();
  assert.deepEqual([subscribed.type, subscribed.channel, subscribed.gap, subscribed.seq], ['subscribed', 'room', false, 7]);

  const cases = [
    [{ data: 'text' }, { data: 'text' }],
    [{ data: { json: [1, null] }, event: 'tick' }, { data: { json: [1, null] }, event: 'tick' }],
    [{ base64: 'AP8=' }, { base64: 'AP8=' }],
    [{ data: null }, { data: null }],
  ];
  for (const [[sent, expected], seq] of cases.map((pair, i) => [pair, i])) {
    a.say({ type: 'publish', channel: 'room', seq, ...sent });
    const m = await b.json('the message at another');
    assert.equal(m.type, 'message');
    const both = [await a.json(), await a.json()];
    const published = both.find(x => x.type === 'published'), own = both.find(x => x.type === 'message');
    assert.deepEqual([published.channel, published.id, published.seq], ['room', m.id, seq]);
    assert.deepEqual(own, m);
    const { type, channel, id, ts, ...rest } = m;
    assert.equal(channel, 'room');
    assert.ok(Math.abs(Date.now() - ts) < DEADLINE_MS);
    assert.deepEqual(rest, expected);
  }
  a.say({ type: 'unsubscribe', channel: 'room' });
  assert.deepEqual(await a.json(), { type: 'unsubscribed', channel: 'room' });
  await publish(server.url, 'room', 'not for a');
  assert.equal((await b.json()).data, 'not for a');
  a.say({ type: 'ping' });
  assert.deepEqual(await a.json(), { type: 'pong' }, 'nothing came in between');
});

test('v1: a key publishes once; a refused operation leaves the connection', async t => {
  const server = await serve(t);
  const peer = await v1(t, `${server.ws}/channels`);
  peer.say({ type: 'publish', channel: 'k', data: 'once', key: 'K', seq: 1 });
  const first = await peer.json();
  assert.equal(first.type, 'published');
  peer.say({ type: 'publish', channel: 'k', data: 'once', key: 'K', seq: 2 });
  const again = await peer.json();
  assert.deepEqual([again.type, again.id, again.seq, again.replayed], ['published', first.id, 2, true]);
  const bad = [
    { type: 'publish', channel: 'k', data: 'other', key: 'K' },
    { type: 'publish', channel: 'k', data: 'x', event: 'open' },
    { type: 'publish', channel: 'k' },
    { type: 'publish', channel: 'a,b', data: 'x' },
    { type: 'subscribe', channel: '' },
    { type: 'subscribe', channel: 'k', cursor: first.id, history: 1 },
    { type: 'no such thing' },
  ];
  for (const [i, frame] of bad.entries()) {
    peer.say({ ...frame, seq: 100 + i });
    const error = await peer.json(`an error for ${JSON.stringify(frame)}`);
    assert.deepEqual([error.type, error.seq], ['error', 100 + i], JSON.stringify(error));
    assert.equal(typeof error.code, 'string');
    assert.equal(typeof error.message, 'string');
  }
  peer.say({ type: 'subscribe', channel: 'k', history: 10 });
  assert.equal((await peer.json()).type, 'subscribed');
  assert.equal((await peer.json()).data, 'once');
  peer.say({ type: 'subscribe', channel: 'k', seq: 9 });
  const twice = await peer.json();
  assert.deepEqual([twice.type, twice.seq], ['error', 9], 'twice is an error');
  peer.say({ type: 'ping' });
  assert.equal((await peer.json()).type, 'pong', 'nothing else was published');
});

test('v1: many channels over one connection, each with its own cursor', async t => {
  const server = await serve(t);
  const peer = await v1(t, `${server.ws}/channels/a,b`, 2);
  assert.deepEqual(peer.subscribed.map(m => m.channel).sort(), ['a', 'b']);
  peer.say({ type: 'subscribe', channel: 'c/d' });
  const c = await peer.json();
  await publish(server.url, 'c/d', '1');
  await publish(server.url, 'a', '2');
  const got = [await peer.json(), await peer.json()];
  assert.deepEqual(got.map(m => `${m.channel} ${m.data}`).sort(), ['a 2', 'c/d 1']);
  const poll = await (await fetch(`${server.url}/channels/c/d?cursor=${c.cursor}`)).json();
  assert.deepEqual(poll.messages.map(m => m.id), [got.find(m => m.channel === 'c/d').id]);
});

test('v1: cut at any byte, it resumes with its cursor: nothing lost, nothing twice', { timeout: 120_000 }, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  through.cutAfter = [60, 150, 200, 301, 302, 400, 999, 5000];
  const total = 500;
  let cursor = await head(server.url, 'cut');
  const publishing = (async () => { for (let n = 1; n <= total; n++) await publish(server.url, 'cut', `${n}`); })();
  const got = [];
  let connections = 0;
  while (got.length < total) {
    const socket = new WebSocket(`${through.ws}/channels`, ['pushline.v1']);
    connections++;
    socket.on('error', () => {});
    socket.on('open', () => socket.send(JSON.stringify({ type: 'subscribe', channel: 'cut', cursor })));
    socket.on('message', bytes => {
      const m = JSON.parse(bytes.toString());
      if (m.type === 'subscribed') { assert.equal(m.gap, false); cursor = m.cursor; }
      if (m.type === 'message') { got.push(m.data); cursor = m.id; if (got.length >= total) socket.close(); }
    });
    await soon(new Promise(done => socket.on('close', done)), 'the cut or the end');
  }
  await publishing;
  assert.deepEqual(got, Array.from({ length: total }, (_, i) => `${i + 1}`));
  assert.equal(connections, 9, 'each cut was met');
});

test('v1: a gap is told', async t => {
  const server = await serve(t);
  const cursor = await head(server.url, 'g');
  await publish(server.url, 'g', 'lost');
  await fetch(`${server.url}/channels/g`, { method: 'DELETE' });
  const peer = await v1(t, `${server.ws}/channels`);
  peer.say({ type: 'subscribe', channel: 'g', cursor });
  const subscribed = await peer.json();
  assert.deepEqual([subscribed.type, subscribed.gap], ['subscribed', true]);
  await publish(server.url, 'g', 'here');
  assert.equal((await peer.json()).data, 'here');
});
