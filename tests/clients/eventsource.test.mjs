// Node's `eventsource`: the usual client outside browsers. It reconnects by itself, with Last-Event-ID.

import assert from 'node:assert/strict';
import { EventSource } from 'eventsource';
import { head, Inbox, proxy, publish, serve, soon, test } from './harness.mjs';

/** An EventSource whose events of the given names arrive in one inbox. */
function listen(t, url, ...names) {
  const source = new EventSource(url);
  t.after(() => source.close());
  const inbox = new Inbox();
  for (const name of ['message', '$open', '$gap', '$close', ...names]) source.addEventListener(name, event => inbox.push(event));
  return { source, inbox };
}

test('messages, names, JSON, line breaks and binary', async t => {
  const { url } = await serve(t);
  const { inbox } = listen(t, `${url}/channels/news`, 'tick', '$binary', '$binary:photo');
  const opened = await inbox.next('$open');
  assert.equal(opened.type, '$open');
  assert.equal(JSON.parse(opened.data).cursor, opened.lastEventId);
  assert.ok(JSON.parse(opened.data).connection);
  const cases = [
    ['text/plain', {}, 'hello', 'message', 'hello'],
    ['text/plain', {}, '', 'message', ''],
    ['text/plain', {}, 'a\r\nb\rc\nd', 'message', 'a\nb\nc\nd'],
    ['text/plain', {}, ' leading, ünï\u2028code', 'message', ' leading, ünï\u2028code'],
    ['application/json', { 'Pushline-Event': 'tick' }, '{"a":\n1}', 'tick', '{"a": 1}'],
    ['application/octet-stream', {}, Buffer.from([0, 255, 10]), '$binary', 'AP8K'],
    ['image/png', { 'Pushline-Event': 'photo' }, Buffer.from([1]), '$binary:photo', 'AQ=='],
  ];
  for (const [kind, headers, body, name, data] of cases) {
    const id = await publish(url, 'news', body, { 'Content-Type': kind, ...headers });
    const event = await inbox.next(name);
    assert.deepEqual([event.type, event.data, event.lastEventId], [name, data, id]);
  }
});

test('cut at any byte, it goes on by itself: nothing lost, nothing twice', { timeout: 120_000 }, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  // The first cuts fall into the head and into $open, the others into messages.
  through.cutAfter = [40, 330, 420, 600, 601, 613];
  const total = 400;
  const { inbox } = listen(t, `${through.url}/channels/cut?cursor=${await head(server.url, 'cut')}`);
  const publishing = (async () => { for (let n = 1; n <= total; n++) await publish(server.url, 'cut', `message ${n}`); })();
  const got = [];
  while (got.length < total) {
    const event = await soon(inbox.next(), `message ${got.length + 1}`);
    assert.notEqual(event.type, '$gap');
    if (event.type === 'message') got.push(event.data);
    if (event.type === 'message' && got.length % 100 === 50 && through.cutAfter.length === 0) through.cut();
  }
  await publishing;
  assert.deepEqual(got, Array.from({ length: total }, (_, i) => `message ${i + 1}`));
  assert.ok(through.seen('Last-Event-ID').length >= 4, `it reconnected with its id: ${through.seen('Last-Event-ID')}`);
});

test('what history no longer holds is told as $gap', async t => {
  const server = await serve(t, { set: { 'history.messages': 5, 'feed.bytes': 200_000 } });
  const through = await proxy(t, server.port);
  const { inbox } = listen(t, `${through.url}/channels/gap`);
  await inbox.next('$open');
  await publish(server.url, 'gap', 'before');
  assert.equal((await inbox.next()).data, 'before');
  through.refusing = true;
  through.cut();
  for (let n = 1; n <= 20; n++) await publish(server.url, 'gap', `${n}`);
  through.refusing = false;
  assert.equal((await inbox.next('$open again')).type, '$open');
  const gap = await inbox.next('$gap');
  assert.equal(gap.type, '$gap');
  assert.equal(JSON.parse(gap.data).channel, 'gap');
  assert.equal(gap.lastEventId, JSON.parse(gap.data).cursor);
  assert.deepEqual((await inbox.take(5)).map(event => event.data), ['16', '17', '18', '19', '20']);
});

test('several channels, and envelopes', async t => {
  const { url } = await serve(t);
  const { inbox } = listen(t, `${url}/channels/a,b`);
  assert.equal((await inbox.next('$open')).lastEventId.split('.').length, 2);
  const id = await publish(url, 'b', '{"n":1}', { 'Content-Type': 'application/json' });
  const event = await inbox.next();
  const m = JSON.parse(event.data);
  assert.deepEqual([m.id, m.channel, m.data], [id, 'b', { n: 1 }]);
  assert.equal(event.lastEventId.split('.')[1], id);
  const one = listen(t, `${url}/channels/b?envelope=1&history=1`);
  assert.equal((await one.inbox.next('$open')).type, '$open');
  assert.deepEqual(JSON.parse((await one.inbox.next()).data), m);
});

test('a cursor of no use is a gap and not an error, for an error would end an EventSource for good', async t => {
  const { url } = await serve(t);
  await publish(url, 'x', 'held');
  const answer = await fetch(`${url}/channels/x`, { headers: { Accept: 'text/event-stream', 'Last-Event-ID': 'not a cursor!' } });
  assert.equal(answer.status, 200);
  let text = '';
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    if (/event: \$gap\ndata: .*\nid: .*\n\n/.test(text)) break;
  }
  const query = await fetch(`${url}/channels/x?cursor=not+a+cursor!`, { headers: { Accept: 'text/event-stream' } });
  assert.equal(query.status, 400);
  await query.body.cancel();
});

test('a server that stops says so: $close, and a time to come back', async t => {
  const server = await serve(t, { set: { 'drain.window_seconds': 1 } });
  const next = await serve(t);
  const through = await proxy(t, server.port);
  const { inbox } = listen(t, `${through.url}/channels/news`);
  await inbox.next('$open');
  through.port = next.port;
  assert.equal(await server.stop(), 0);
  const closing = await inbox.next('$close');
  assert.equal(closing.type, '$close');
  const { reason, reconnect_ms } = JSON.parse(closing.data);
  assert.equal(typeof reason, 'string');
  assert.ok(reconnect_ms >= 0 && reconnect_ms <= 3000, `${reconnect_ms}`);
  // The other node cannot know the cursor, and says that too.
  assert.equal((await inbox.next('$open of the next node')).type, '$open');
  assert.equal((await inbox.next('$gap')).type, '$gap');
  await publish(next.url, 'news', 'here');
  assert.equal((await inbox.next()).data, 'here');
});
