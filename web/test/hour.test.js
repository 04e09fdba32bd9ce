// A real host with many apps, looked at ten times a second for long: whether the page or the agent grows.
//
// FOREBAY_PAGE is the page's address, FOREBAY_AGENT the daemon's process number, FOREBAY_MINUTES how long to
// look: an hour unless told. Nothing counts before all that is remembered is full, which the page has after a quarter;
// who looks for less allows the page what it remembers meanwhile.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { heapOf, open, withBrowser } from "./browser.js";

const { FOREBAY_PAGE: PAGE, FOREBAY_AGENT: AGENT } = process.env;
const MINUTES = Number(process.env.FOREBAY_MINUTES ?? 60);
/** 900 moments of the host, one a second, and the longest that a roll-up or a forecast waits for its second one. */
const FULL_MINUTES = Math.min(20, MINUTES / 2);
const GROWN_BYTES_MAX = 8e6;
/** What the page remembers of an app in a moment, at most: about 300 bytes, measured with 200 apps. */
const MOMENT_BYTES_MAX = 500;
const REMEMBERED_MINUTES = 15;
const MOMENTS_A_MINUTE = 60;
const MINUTE_MS = 60_000;

async function resident(pid) {
  const text = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(text.match(/^VmRSS:\s+(\d+) kB/m)[1]) * 1024;
}

test("nothing grows", { skip: PAGE && AGENT ? false : "FOREBAY_PAGE and FOREBAY_AGENT name no page and no daemon" }, () =>
  withBrowser(async (browser) => {
    const { page, faults } = await open(browser, PAGE);
    await page.evaluate(() => sessionStorage.setItem("forebay-pace", "100"));
    await page.reload();
    await page.click("text=Apps");
    const apps = parseInt(await page.textContent("text=/^[0-9]+ apps$/"), 10);
    const heap = await heapOf(page);
    const look = async () => ({ heap: await heap(), agent: await resident(AGENT) });
    let full = null;
    for (let minute = 0; minute <= MINUTES; minute += 1) {
      const seen = await look();
      if (minute >= FULL_MINUTES) full ??= seen;
      console.log(`minute ${minute}: heap of the page ${(seen.heap / 1e6).toFixed(2)} MB, agent ${(seen.agent / 1e6).toFixed(2)} MB`);
      if (minute < MINUTES) await page.waitForTimeout(MINUTE_MS);
    }
    const last = await look();
    const [page_grown, agent_grown] = [last.heap - full.heap, last.agent - full.agent];
    console.log(`from minute ${FULL_MINUTES} to ${MINUTES}: page grown by ${(page_grown / 1e6).toFixed(2)} MB, agent by ${(agent_grown / 1e6).toFixed(2)} MB`);
    const filling = Math.max(0, Math.min(MINUTES, REMEMBERED_MINUTES) - FULL_MINUTES);
    const page_grown_max = GROWN_BYTES_MAX + filling * MOMENTS_A_MINUTE * apps * MOMENT_BYTES_MAX;
    assert.ok(page_grown < page_grown_max, `the page has grown by ${page_grown} bytes, of ${page_grown_max} at most`);
    assert.ok(agent_grown < GROWN_BYTES_MAX, `the agent has grown by ${agent_grown} bytes`);
    assert.deepEqual(faults, []);
  }));
