// Ten messages a second of 200 apps for a minute: what the dashboard's process takes, and that neither it nor
// the page grows by as little as a note about each message. The sibling that takes an hour is in hour.test.js.
//
// The daemon's clock goes ten times as fast, and it tells four times as often at first, so that everything
// that the page remembers is full soon. FOREBAY_MINUTES says how long to watch from then on.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { heapOf, open } from "./browser.js";
import { skip, withDashboard } from "./daemon.js";

const APPS = 200;
const WATCH_MS = Number(process.env.FOREBAY_MINUTES ?? 1) * 60_000;
/** Messages until all that is remembered is full: 900 moments of the host, 3,000 of an app at most, 500 events. */
const FULL = 1100;
/** What is promised. */
const CPU_SHARE_MAX = 0.05;
/** A page that keeps a short text of each message grows by more. */
const GROWN_BYTES_A_MESSAGE_MAX = 200;
/** The least that tells: what a browser compiles and caches meanwhile comes to some ten thousand bytes. */
const GROWN_BYTES_MIN = 100_000;
/** Of the dashboard's process, which has seen each message by then. */
const RESIDENT_GROWN_MAX = 2e6;
/** To see that the above would be seen: so much is kept of so many messages. */
const [LEAK_BYTES, LEAK_MESSAGES] = [2000, 150];

/** Processor time of a process so far, in seconds. */
async function used(pid) {
  const text = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

async function resident(pid) {
  const text = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(text.match(/^VmRSS:\s+(\d+) kB/m)[1]) * 1024;
}

/** By how much more than is allowed a page has grown in so many messages; not above zero where all is well. */
const excess = (grown, messages) => grown - Math.max(GROWN_BYTES_MIN, GROWN_BYTES_A_MESSAGE_MAX * messages);

test("ten messages a second of 200 apps cost little, and nothing grows", { skip }, () =>
  withDashboard(async ({ browser, daemon, url, child }) => {
    daemon.names = Array.from({ length: APPS }, (_, number) => `app-${number}`);
    daemon.step_ms = 1000;
    daemon.events_every = 1;
    const { page, faults } = await open(browser, url);
    // Which message the page has taken in, so that none is on its way when its memory is looked at.
    await page.addInitScript(() => {
      const parse = JSON.parse;
      globalThis.takenIn = 0;
      JSON.parse = (...all) => {
        const value = parse(...all);
        globalThis.takenIn = value?.status?.period ?? globalThis.takenIn;
        return value;
      };
    });
    await page.evaluate(() => sessionStorage.setItem("forebay-pace", "100"));
    await page.reload();
    await page.click("text=Apps");
    await page.waitForSelector(`text=${APPS} apps`);
    const heard = async (count) => {
      const wanted = daemon.period + count;
      while (daemon.period < wanted) await page.waitForTimeout(100);
    };
    const heap = await heapOf(page);
    /** The page's heap with no message on its way, to the byte. */
    const exact = async () => {
      daemon.held = true;
      await page.waitForFunction((period) => globalThis.takenIn >= period, daemon.period);
      await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
      await heap();
      const bytes = await heap();
      daemon.held = false;
      return bytes;
    };
    daemon.every_ms = 25;
    await heard(FULL);
    daemon.every_ms = 100;
    daemon.events_every = 10;
    await heard(20);
    const [first, first_resident] = [await exact(), await resident(child.pid)];
    const [cpu, began, before] = [await used(child.pid), performance.now(), daemon.period];
    await page.waitForTimeout(WATCH_MS);
    const seconds = (performance.now() - began) / 1000;
    const share = ((await used(child.pid)) - cpu) / seconds;
    const messages = daemon.period - before;
    const grown = (await exact()) - first;
    const grown_resident = (await resident(child.pid)) - first_resident;
    console.log(`${APPS} apps: ${messages} messages in ${seconds.toFixed(0)} s; the dashboard takes `
      + `${(share * 100).toFixed(2)} % of a CPU, ${(1000 * share * seconds / messages).toFixed(2)} ms a message, and grew by ${grown_resident} bytes; `
      + `heap of the page ${first} bytes, grown by ${grown}: ${(grown / messages).toFixed(1)} a message`);
    assert.ok(messages / seconds > 8, `${messages / seconds} messages a second`);
    assert.ok(share < CPU_SHARE_MAX, `${share} of a CPU`);
    assert.ok(excess(grown, messages) <= 0, `the page grew by ${grown} bytes in ${messages} messages`);
    assert.ok(grown_resident < RESIDENT_GROWN_MAX, `the dashboard grew by ${grown_resident} bytes`);

    // A page that keeps something of each message is found out.
    await page.evaluate((bytes) => {
      const parse = JSON.parse;
      globalThis.kept = [];
      JSON.parse = (text, ...rest) => {
        globalThis.kept.push(`${globalThis.kept.length}`.padEnd(bytes, "x").split("").join(""));
        return parse(text, ...rest);
      };
    }, LEAK_BYTES);
    const [clean, last] = [await exact(), daemon.period];
    daemon.every_ms = 25;
    await heard(LEAK_MESSAGES);
    const leaked = (await exact()) - clean;
    console.log(`with a leak of ${LEAK_BYTES} bytes a message: grown by ${leaked} in ${daemon.period - last}`);
    assert.ok(excess(leaked, daemon.period - last) > 0, `a leak was not seen: ${leaked} bytes`);
    assert.deepEqual(faults, []);
  }));
