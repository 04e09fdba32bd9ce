// The page beside a daemon that has everything go wrong. The dashboard is the real program, FOREBAY_EXE;
// at its socket answers this test.

import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { test } from "node:test";
import { heapOf, open } from "./browser.js";
import { skip, withDashboard } from "./daemon.js";

const NASTY = ["<img src=x onerror=alert(1)>", "a\u001b[31mb\u0000c", "\u202egnihtemos", "x".repeat(300)];

test("names are shown as they are, whatever is in them", { skip }, () =>
  withDashboard(async ({ browser, daemon, url }) => {
    daemon.names = NASTY;
    const { page, faults } = await open(browser, url);
    page.on("dialog", () => assert.fail("markup of a name ran"));
    await page.click("text=Apps");
    await page.waitForSelector("text=4 apps");
    assert.equal(await page.locator("main img").count(), 0);
    await page.waitForSelector("text=<img src=x onerror=alert(1)>");
    assert.ok((await page.textContent("main")).includes("a␛[31mb␀c"));
    await page.click("text=<img src=x");
    await page.waitForSelector("h2:has-text('<img src=x')");
    await page.click("text=Events");
    await page.waitForSelector("td:has-text('<b>bold</b>')");
    assert.deepEqual(faults, []);
  }));

test("a daemon that dies is missed, and found again", { skip }, () =>
  withDashboard(async ({ browser, daemon, socket, url }) => {
    const { page, faults } = await open(browser, url);
    await page.waitForSelector("text=NUMA node");
    await daemon.end();
    await page.waitForSelector("#trouble:not([hidden])");
    await page.waitForSelector("#trouble:has-text('is the daemon running?')");
    await rm(socket, { force: true });
    // It comes back with its clock an hour behind and its counts begun anew.
    daemon.time -= 3_600_000;
    daemon.period = 0;
    await daemon.listen(socket);
    await page.waitForSelector("#trouble", { state: "hidden" });
    await page.click("text=Apps");
    await page.waitForSelector("text=/^1 app$/");
    assert.deepEqual(faults, []);
  }));

test("a dashboard that was started again has another token, and says so", { skip }, () =>
  withDashboard(async ({ browser, url, child, start }) => {
    const { page, faults } = await open(browser, url);
    await page.waitForSelector("text=NUMA node");
    child.kill();
    await page.waitForSelector("#trouble:has-text('still running')");
    const again = await start(new URL(url).host);
    await page.waitForSelector("#trouble:has-text('open the address')");
    await page.goto(again.url);
    await page.waitForSelector("#trouble", { state: "hidden" });
    assert.deepEqual(faults, []);
  }));

test("five thousand apps are no burden, and nothing grows", { skip }, () =>
  withDashboard(async ({ browser, daemon, url }) => {
    daemon.names = Array.from({ length: 5000 }, (_, number) => `app-${number}`);
    const { page, faults } = await open(browser, url);
    await page.click("text=Apps");
    await page.waitForSelector("text=The first 300 of 5000");
    await page.keyboard.press("/");
    await page.keyboard.type("app-4999");
    await page.waitForSelector("text=/^1 app$/");
    const heap = await heapOf(page);
    const seen = () => page.evaluate(() => document.getElementById("time").textContent);
    const first = await heap();
    // Twenty more messages, by what the page shows of them.
    for (let count = 0, last = await seen(); count < 5;) {
      const now = await seen();
      if (now !== last) count += 1;
      last = now;
      await page.waitForTimeout(50);
    }
    const grown = (await heap()) - first;
    console.log(`5,000 apps: heap ${Math.round(first / 1e6)} MB, grown by ${Math.round(grown / 1e6)} MB`);
    assert.ok(first + grown < 400e6, `${first + grown} bytes`);
    assert.deepEqual(faults, []);
  }));
