// curl, as in the README: what a shell meets.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { head, Inbox, publish, serve, soon, test } from './harness.mjs';

/** Runs curl to its end: status, headers (lower case) and body. */
async function curl(...args) {
  const child = spawn('curl', ['-sS', '-i', '--max-time', '20', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '', err = '';
  child.stdout.setEncoding('utf8').on('data', text => { out += text; });
  child.stderr.setEncoding('utf8').on('data', text => { err += text; });
  const code = await soon(new Promise(done => child.once('close', done)), `curl ${args.join(' ')}`, 30_000);
  assert.equal(code, 0, `curl ${args.join(' ')}: ${err}`);
  let status, headers, body = out;
  do {
    const end = body.indexOf('\r\n\r\n');
    const lines = body.slice(0, end).split('\r\n');
    body = body.slice(end + 4);
    status = lines[0];
    headers = Object.fromEntries(lines.slice(1).map(line => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]));
  } while (/ 1\d\d /.test(status));
  return { version: status.split(' ')[0], status: Number(status.split(' ')[1]), headers, body, json: () => JSON.parse(body) };
}

/** A curl that goes on: its lines, as they come. */
function stream(t, ...args) {
  const child = spawn('curl', ['-sS', '-N', '--max-time', '60', ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill());
  const lines = new Inbox();
  createInterface(child.stdout).on('line', line => lines.push(line));
  /** The next event: its fields; comments and `retry` alone are passed over. */
  const event = async () => {
    for (let fields = {}; ;) {
      const line = await lines.next('a line of the stream');
      if (line === '') { if ('data' in fields) return fields; fields = {}; continue; }
      if (line.startsWith(':')) continue;
      const [, name, value] = line.match(/^([^:]*): ?(.*)$/);
      fields[name] = name === 'data' && 'data' in fields ? `${fields.data}\n${value}` : value;
    }
  };
  return { event, ended: new Promise(done => child.once('close', done)) };
}

test('publish with -d, poll, and 304 with If-None-Match', async t => {
  const { url } = await serve(t);
  const cursor = await head(url, 'news');
  const published = await curl('-d', 'hello', `${url}/channels/news`);
  assert.equal(published.status, 201);
  const [{ channel, id }] = published.json().published;
  assert.equal(channel, 'news');

  const poll = await curl(`${url}/channels/news?cursor=${cursor}`);
  assert.equal(poll.status, 200);
  assert.equal(poll.headers['cache-control'], 'private, no-cache');
  assert.deepEqual(poll.json().messages.map(m => [m.id, m.channel, m.data]), [[id, 'news', 'hello']]);
  assert.equal(poll.json().cursor, id);
  assert.equal(poll.json().gap, false);

  const tag = poll.headers.etag;
  assert.match(tag, /^"[^"]+"$/);
  for (const value of [tag, `W/${tag}`, `"other", ${tag}`, '*']) {
    const again = await curl('-H', `If-None-Match: ${value}`, `${url}/channels/news?cursor=${cursor}`);
    assert.equal(again.status, 304, value);
    assert.equal(again.headers.etag, tag);
    assert.equal(again.body, '');
  }
  await publish(url, 'news', 'more');
  const changed = await curl('-H', `If-None-Match: ${tag}`, `${url}/channels/news?cursor=${cursor}`);
  assert.equal(changed.status, 200);
  assert.deepEqual(changed.json().messages.map(m => m.data), ['hello', 'more']);
});

test('-d sends text, JSON with its type, --data-binary a file as it is', async t => {
  const { url } = await serve(t);
  const cursor = await head(url, 'kinds');
  const to = `${url}/channels/kinds`;
  assert.equal((await curl('-d', 'a=1&b=2', to)).status, 201);
  assert.equal((await curl('-H', 'Content-Type: application/json', '-d', '{"t": [1, 2.50]}', to)).status, 201);
  assert.equal((await curl('-H', 'Content-Type: application/octet-stream', '--data-binary', '\u0001\u0002', to)).status, 201);
  assert.equal((await curl('-H', 'Content-Type: application/json', '-d', '{"t": ', to)).status, 400);
  const poll = await curl(`${to}?cursor=${cursor}`);
  const [text, json, binary] = poll.json().messages;
  assert.equal(text.data, 'a=1&b=2');
  assert.deepEqual(json.data, { t: [1, 2.5] });
  assert.equal(binary.base64, Buffer.from('\u0001\u0002').toString('base64'));
  assert.ok(poll.body.includes('{"t": [1, 2.50]}'), 'JSON is passed on as it came');
});

test('a body that waits for 100 Continue', async t => {
  const { url } = await serve(t);
  const body = 'x'.repeat(60_000);
  const answer = await curl('-H', 'Expect: 100-continue', '-H', 'Content-Type: text/plain', '-d', body, `${url}/channels/big`);
  assert.equal(answer.status, 201);
  assert.equal((await curl(`${url}/channels/big`)).json().messages[0].data, body);
  const chunked = await curl('-H', 'Transfer-Encoding: chunked', '-H', 'Content-Type: text/plain', '-d', body, `${url}/channels/big`);
  assert.equal(chunked.status, 201);
  const over = await curl('-H', 'Content-Type: text/plain', '-d', body.repeat(2), `${url}/channels/big`);
  assert.equal(over.status, 413);
});

test('SSE with -N: opens with a cursor, resumes with Last-Event-ID', async t => {
  const { url } = await serve(t);
  const accept = ['-H', 'Accept: text/event-stream'];
  const first = stream(t, ...accept, `${url}/channels/news`);
  const opened = await first.event();
  assert.equal(opened.event, '$open');
  assert.equal(JSON.parse(opened.data).cursor, opened.id);
  const id = await publish(url, 'news', 'one\ntwo');
  const message = await first.event();
  assert.deepEqual([message.event, message.data, message.id], [undefined, 'one\ntwo', id]);
  await publish(url, 'news', 'three', { 'Content-Type': 'text/plain', 'Pushline-Event': 'tick' });
  assert.equal((await first.event()).event, 'tick');

  const resumed = stream(t, ...accept, '-H', `Last-Event-ID: ${id}`, `${url}/channels/news?cursor=${opened.id}`);
  assert.equal((await resumed.event()).id, id, 'the stream opens at its resume point; the header wins');
  assert.equal((await resumed.event()).data, 'three');
  const older = stream(t, ...accept, `${url}/channels/news?cursor=${opened.id}`);
  assert.equal((await older.event()).id, opened.id);
  assert.deepEqual([(await older.event()).data, (await older.event()).data], ['one\ntwo', 'three']);
});

test('an Accept of */* alone is a poll', async t => {
  const { url } = await serve(t);
  const answer = await curl('-H', 'Accept: */*', `${url}/channels/news`);
  assert.equal(answer.status, 200);
  assert.match(answer.headers['content-type'], /^application\/json/);
});

test('long poll with Prefer: wait, answered by the first message, or by 204', async t => {
  const { url } = await serve(t);
  const cursor = await head(url, 'slow');
  const target = `${url}/channels/slow?cursor=${cursor}`;
  const empty = await curl('-H', 'Prefer: wait=1', target);
  assert.equal(empty.status, 204);
  assert.equal(empty.headers['pushline-cursor'], cursor);
  assert.equal(empty.headers['preference-applied'], 'wait=1');

  const held = curl('-H', 'Prefer: wait=5', target);
  const also = curl(`${target}&wait=5`);
  const id = await publish(url, 'slow', 'now');
  for (const answer of [await held, await also]) {
    assert.equal(answer.status, 200);
    assert.equal(answer.headers['pushline-cursor'], id);
    assert.equal(answer.headers['cache-control'], 'no-store');
    assert.equal(answer.headers.etag, undefined);
    assert.deepEqual(answer.json().messages.map(m => m.data), ['now']);
  }
});

test('HTTP/1.0: polls, publishes, and streams until the end', async t => {
  const server = await serve(t, { set: { 'drain.window_seconds': 1 } });
  const to = `${server.url}/channels/old`;
  assert.equal((await curl('--http1.0', '-d', 'hello', to)).status, 201);
  const poll = await curl('--http1.0', to);
  assert.equal(poll.status, 200);
  assert.equal(poll.json().messages[0].data, 'hello');
  const events = stream(t, '--http1.0', '-H', 'Accept: text/event-stream', `${to}?history=1`);
  assert.equal((await events.event()).event, '$open');
  assert.equal((await events.event()).data, 'hello');
  assert.equal(await server.stop(), 0);
  assert.equal((await events.event()).event, '$close');
  assert.equal(await soon(events.ended, 'curl ends with the stream'), 0);
});

test('HEAD has the head of the answer and no body, and never holds', async t => {
  const { url } = await serve(t);
  const cursor = await head(url, 'news');
  const get = await curl(`${url}/channels/news?cursor=${cursor}`);
  const answer = await curl('-I', `${url}/channels/news?cursor=${cursor}`);
  assert.equal(answer.status, 200);
  assert.equal(answer.body, '');
  assert.equal(answer.headers.etag, get.headers.etag);
  assert.equal(answer.headers['content-length'], get.headers['content-length']);
  const wait = await curl('-I', '--max-time', '5', `${url}/channels/news?cursor=${cursor}&wait=30`);
  assert.ok([200, 204].includes(wait.status), `${wait.status}`);
  const events = await curl('-I', '--max-time', '5', '-H', 'Accept: text/event-stream', `${url}/channels/news`);
  assert.equal(events.status, 200);
  assert.match(events.headers['content-type'], /^text\/event-stream/);
});

test('OPTIONS names the methods; others are 405', async t => {
  const { url } = await serve(t);
  const options = await curl('-X', 'OPTIONS', `${url}/channels/news`);
  assert.ok(options.status === 200 || options.status === 204, `${options.status}`);
  for (const method of ['GET', 'HEAD', 'POST', 'DELETE']) assert.match(options.headers.allow, new RegExp(`\\b${method}\\b`));
  const put = await curl('-X', 'PUT', '-d', 'x', `${url}/channels/news`);
  assert.equal(put.status, 405);
  assert.match(put.headers['content-type'], /^application\/problem\+json/);
  assert.ok(put.headers.allow.includes('POST'));
});

test('DELETE forgets the history, and an earlier cursor is told', async t => {
  const { url } = await serve(t);
  const cursor = await head(url, 'gone');
  await publish(url, 'gone', 'x');
  assert.equal((await curl('-X', 'DELETE', `${url}/channels/gone`)).status, 204);
  const poll = await curl(`${url}/channels/gone?cursor=${cursor}`);
  assert.deepEqual([poll.json().messages, poll.json().gap, poll.json().gaps], [[], true, ['gone']]);
});

test('several channels in one request', async t => {
  const { url } = await serve(t);
  const cursor = await head(url, 'a,b/c');
  assert.equal(cursor.split('.').length, 2);
  assert.equal((await curl('-d', 'both', `${url}/channels/a,b/c`)).json().published.length, 2);
  const poll = await curl(`${url}/channels/a,b/c?cursor=${cursor}`);
  assert.deepEqual(poll.json().messages.map(m => m.channel).sort(), ['a', 'b/c']);
});

test('many requests over one connection', async t => {
  const { url } = await serve(t);
  const urls = Array.from({ length: 20 }, (_, i) => `${url}/channels/n${i}`);
  const child = spawn('curl', ['-sS', '--max-time', '20', '-w', '%{num_connects} %{http_code}\\n', '-o', '/dev/null', ...urls.flatMap((u, i) => i ? ['-o', '/dev/null', u] : [u])]);
  let out = '';
  child.stdout.on('data', text => { out += text; });
  await soon(new Promise(done => child.once('close', done)), 'curl ends');
  assert.deepEqual(out.trim().split('\n'), ['1 200', ...Array(19).fill('0 200')]);
});
