// The lab page, used as a visitor uses it: it must show no loss because there is none, and be pleasant to look at.
// Screenshots go to PUSHLINE_SHOTS, or a temporary directory whose name is printed.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before } from 'node:test';
import { launch, noBrowser, proxy, serve, test } from './harness.mjs';

let browser;
before(async () => { if (!noBrowser) browser = await launch(); }, { timeout: 60_000 });
after(() => browser?.close(), { timeout: 60_000 });

const options = { skip: noBrowser, timeout: 180_000 };
const READERS = ['short', 'long', 'sse', 'ws', 'hopper'];

/** The page, with everything that it complains about. */
async function lab(t, url, settings = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...settings });
  t.after(() => context.close());
  const tab = await context.newPage();
  const complaints = [];
  tab.on('console', said => { if (['error', 'warning'].includes(said.type())) complaints.push(said.text()); });
  tab.on('pageerror', error => complaints.push(String(error)));
  await tab.goto(url);
  await tab.waitForFunction(() => [...document.querySelectorAll('[data-reader]')].filter(r => r.dataset.state === 'open').length === 5);
  return { tab, complaints };
}

const rate = (tab, value) => tab.check(`input[name=rate][value="${value}"]`, { force: true });

const allAre = (tab, state) => tab.waitForFunction(state => [...document.querySelectorAll('[data-reader]')].every(r => r.dataset.state === state), state, { timeout: 30_000 });

/** The readers' accounts, by name. */
const accounts = tab => tab.evaluate(() => Object.fromEntries([...document.querySelectorAll('[data-reader]')].map(r => [r.dataset.reader, { ...r.dataset }])));

/** Stops publishing, waits until every reader has everything, and checks that the page says so. */
async function settled(tab, atLeast) {
  await rate(tab, 0);
  await tab.waitForFunction(n => {
    const published = Number(document.querySelector('#verdict').dataset.published);
    return published >= n && [...document.querySelectorAll('[data-reader]')].every(r => Number(r.dataset.own) === published && r.dataset.state === 'open');
  }, atLeast, { timeout: 60_000 });
  const found = await accounts(tab);
  for (const name of READERS) {
    const { lost, twice, disorder, gaps } = found[name];
    assert.deepEqual([lost, twice, disorder, gaps], ['0', '0', '0', '0'], name);
    assert.match(await tab.textContent(`[data-reader=${name}] .loss`), /^0 lost, 0 twice, in order$/);
  }
  assert.match(await tab.textContent('#verdict-text'), /^0 lost, 0 twice, in order/);
  return found;
}

test('publishes at a rate, is cut everywhere, and loses nothing', options, async t => {
  const { url } = await serve(t);
  const { tab, complaints } = await lab(t, url);
  await rate(tab, 100);
  const published = n => tab.waitForFunction(n => Number(document.querySelector('#verdict').dataset.published) >= n, n, { timeout: 60_000 });
  await published(50);
  for (const name of READERS) {
    await tab.click(`[data-reader=${name}] .cut`);
    await tab.waitForSelector(`[data-reader=${name}][data-state=cut]`);
  }
  await allAre(tab, 'open');
  await tab.click('#cut-all');
  await allAre(tab, 'cut');
  await allAre(tab, 'open');
  await published(600);
  const found = await settled(tab, 600);
  assert.equal(found.ws.requests, '3', 'a WebSocket is one request for each connection');
  assert.equal(found.sse.requests, '3');
  assert.ok(Number(found.long.requests) > Number(found.short.requests), 'long polling spends a request on each message');
  assert.deepEqual(complaints, []);
});

test('one reader hops over all transports with its cursor alone', options, async t => {
  const { url } = await serve(t);
  const { tab, complaints } = await lab(t, url);
  await rate(tab, 100);
  for (const kind of ['long', 'sse', 'ws', 'short', 'ws', 'sse', 'long', 'short', 'sse']) {
    const before = Number((await accounts(tab)).hopper.own);
    await tab.check(`input[name=hop][value=${kind}]`, { force: true });
    await tab.waitForFunction(([kind, n]) => { const h = document.querySelector('#hopper').dataset; return h.transport === kind && Number(h.own) > n; }, [kind, before], { timeout: 30_000 });
  }
  const found = await settled(tab, 100);
  assert.equal(found.hopper.hops, '9');
  assert.deepEqual(complaints, []);
});

test('the network cuts and stalls: everything comes back by itself, and publishing repeats under its keys', options, async t => {
  const server = await serve(t);
  const through = await proxy(t, server.port);
  const { tab } = await lab(t, through.url);
  await rate(tab, 20);
  for (let n = 1; n <= 3; n++) {
    await tab.waitForFunction(n => Number(document.querySelector('#verdict').dataset.published) >= n, n * 30, { timeout: 60_000 });
    through.refusing = true;
    through.cut();
    await tab.waitForFunction(() => [...document.querySelectorAll('[data-reader]')].every(r => r.dataset.state !== 'open'), null, { timeout: 30_000 });
    through.refusing = false;
    await allAre(tab, 'open');
  }
  const found = await settled(tab, 100);
  assert.equal(found.sse.gaps, '0');
  assert.ok(through.seen('Last-Event-ID').length >= 3, 'EventSource came back by itself');
});

test('a loss would be seen: the page counts what is missing, twice, or told as a gap', options, async t => {
  const { url } = await serve(t);
  const { tab } = await lab(t, url);
  await rate(tab, 0);
  // The page's own counter, fed with what a faulty server would deliver.
  const sums = await tab.evaluate(() => {
    const reader = new Reader('ws', document.querySelector('[data-reader=ws]'));
    for (const n of [1, 2, 2, 5, 4]) reader.count(n);
    const faulty = [reader.lost, reader.twice, reader.disorder, reader.told];
    reader.tellGap();
    reader.count(9);
    return [faulty, [reader.lost, reader.told, reader.gaps]];
  });
  assert.deepEqual(sums, [[1, 1, 1, 0], [1, 3, 1]]);
});

test('a single message, and one from elsewhere, appear with all readers', options, async t => {
  const { url } = await serve(t);
  const { tab, complaints } = await lab(t, `${url}/#lab/single`);
  await rate(tab, 0);
  await tab.fill('#one', '<b>by hand</b>');
  await tab.press('#one', 'Enter');
  for (const name of ['short', 'long', 'sse', 'ws']) await tab.waitForSelector(`[data-reader=${name}] .last >> text=<b>by hand</b>`);
  const curl = await tab.textContent('#publish-curl');
  assert.ok(curl.includes(`${url}/channels/lab/single`), curl);
  await fetch(`${url}/channels/lab/single`, { method: 'POST', body: 'from a shell', headers: { 'Content-Type': 'application/x-www-form-urlencoded' } });
  for (const name of ['short', 'long', 'sse', 'ws']) await tab.waitForSelector(`[data-reader=${name}] .last >> text=from a shell`);
  await tab.fill('#channel', 'lab/other ☃');
  await tab.press('#channel', 'Enter');
  await tab.waitForFunction(() => decodeURI(location.hash) === '#lab/other ☃' && [...document.querySelectorAll('[data-reader]')].every(r => r.dataset.state === 'open' && r.dataset.received === '0'));
  await rate(tab, 20);
  await tab.waitForFunction(() => Number(document.querySelector('#verdict').dataset.published) >= 10);
  await settled(tab, 10);
  assert.deepEqual(complaints, []);
});

test('light and dark, narrow and wide: no overflow, everything can be reached, no small contrast', options, async t => {
  const { url } = await serve(t);
  const shots = process.env.PUSHLINE_SHOTS ?? mkdtempSync(join(tmpdir(), 'pushline-lab-'));
  mkdirSync(shots, { recursive: true });
  for (const colorScheme of ['light', 'dark']) {
    for (const width of [380, 820, 1440]) {
      const { tab, complaints } = await lab(t, url, { colorScheme, viewport: { width, height: 900 }, reducedMotion: width === 820 ? 'reduce' : 'no-preference' });
      await rate(tab, 20);
      await tab.check('#auto');
      await tab.waitForFunction(() => Number(document.querySelector('#verdict').dataset.published) >= 40);
      const found = await tab.evaluate(() => {
        const luminance = text => {
          const [r, g, b] = text.match(/[\d.]+/g).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
          return .2126 * r + .7152 * g + .0722 * b;
        };
        const background = node => {
          for (let at = node; at; at = at.parentElement) { const colour = getComputedStyle(at).backgroundColor; if (!/, 0\)$/.test(colour)) return colour; }
        };
        const poor = [...document.querySelectorAll('main *, header *, footer *')].filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())).filter(node => {
          const [a, b] = [luminance(getComputedStyle(node).color), luminance(background(node))].sort((x, y) => y - x);
          return (a + .05) / (b + .05) < 4.5;
        }).map(node => `${node.tagName}.${node.className} ${node.textContent.slice(0, 30)}`);
        const unnamed = [...document.querySelectorAll('button, input, canvas')].filter(node => !(node.ariaLabel || node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map(node => node.outerHTML);
        const wide = [...document.querySelectorAll('main *')].filter(node => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('.last, .hide')).map(node => node.outerHTML.slice(0, 80));
        return { scroll: document.documentElement.scrollWidth, inner: innerWidth, poor, unnamed, wide };
      });
      assert.deepEqual(found, { scroll: width, inner: width, poor: [], unnamed: [], wide: [] }, `${colorScheme} ${width}`);
      await tab.screenshot({ path: join(shots, `${colorScheme}-${width}.png`), fullPage: true });
      assert.deepEqual(complaints, [], `${colorScheme} ${width}`);
      await tab.context().close();
    }
  }
  t.diagnostic(`screenshots: ${shots}`);
});

test('it asks nobody but its own server', options, async t => {
  const { url } = await serve(t);
  const answer = await fetch(url);
  assert.match(answer.headers.get('Content-Type'), /^text\/html/);
  const page = await answer.text();
  assert.ok(page.length < 40_000, `${page.length} bytes`);
  assert.deepEqual(page.match(/(?:src|href)="(?!data:)[^"]*"/g), null);
  const { tab } = await lab(t, url);
  const asked = await tab.evaluate(() => performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin));
  assert.deepEqual([...new Set(asked)], [url]);
});
