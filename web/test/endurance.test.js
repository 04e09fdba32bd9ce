// Ten messages a second of 200 apps: what the dashboard's process takes, and that the page keeps its size.
//
// The daemon's clock goes ten times as fast, and it tells four times as often at first, so that everything
// that the page remembers is full soon. FOREBAY_MINUTES says how long to watch from then on; a quarter of a minute unless told.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { heapOf, open } from "./browser.js";
import { skip, withDashboard } from "./daemon.js";

const APPS = 200;
const WATCH_MS = Number(process.env.FOREBAY_MINUTES ?? 0.25) * 60_000;
/** Messages until all that is remembered is full: 900 moments of the host, 3,000 of an app at most. */
const FULL = 1000;
/** What is promised. */
const CPU_SHARE_MAX = 0.05;
const GROWN_BYTES_MAX = 8e6;

/** Processor time of a process so far, in seconds. */
async function used(pid) {
  const text = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

test("ten messages a second of 200 apps cost little, and nothing grows", { skip }, () =>
  withDashboard(async ({ browser, daemon, url, child }) => {
    daemon.names = Array.from({ length: APPS }, (_, number) => `app-${number}`);
    daemon.step_ms = 1000;
    const { page, faults } = await open(browser, url);
    await page.evaluate(() => sessionStorage.setItem("forebay-pace", "100"));
    await page.reload();
    await page.click("text=Apps");
    await page.waitForSelector(`text=${APPS} apps`);
    const heard = async (count) => {
      const wanted = daemon.period + count;
      while (daemon.period < wanted) await page.waitForTimeout(500);
    };
    const heap = await heapOf(page);
    daemon.every_ms = 25;
    await heard(FULL);
    daemon.every_ms = 100;
    await heard(20);
    const [first, cpu, began, messages] = [await heap(), await used(child.pid), performance.now(), daemon.period];
    await page.waitForTimeout(WATCH_MS);
    const seconds = (performance.now() - began) / 1000;
    const share = ((await used(child.pid)) - cpu) / seconds;
    const rate = (daemon.period - messages) / seconds;
    const grown = (await heap()) - first;
    console.log(`${APPS} apps: ${rate.toFixed(1)} messages a second for ${seconds.toFixed(0)} s, `
      + `the dashboard takes ${(share * 100).toFixed(2)} % of a CPU, `
      + `heap ${(first / 1e6).toFixed(1)} MB, grown by ${(grown / 1e6).toFixed(1)} MB`);
    assert.ok(rate > 8, `${rate} messages a second`);
    assert.ok(share < CPU_SHARE_MAX, `${share} of a CPU`);
    assert.ok(grown < GROWN_BYTES_MAX, `grown by ${grown} bytes`);
    assert.deepEqual(faults, []);
  }));
