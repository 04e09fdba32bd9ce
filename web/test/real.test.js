// The page of a real daemon, whose address is in FOREBAY_PAGE: it has an app `web` that computes, an app
// `batch`, and a front `shop` before two more, `a` and `b`: five apps with what it runs for the front. Pictures go to FOREBAY_PICTURES, if named.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { inaccessible, open, PATIENCE_MS, withBrowser } from "./browser.js";
import { load } from "./paint.js";

const PAGE = process.env.FOREBAY_PAGE;
const PICTURES = process.env.FOREBAY_PICTURES;
/** What is promised of the page. */
const PAINT_MS_MAX = 300;
const LOADS = 7;
/** Processor time of the page's main thread until then: a bound of this test, three times what it took. */
const MAIN_THREAD_MS_MAX = 250;
/** From here on the machine is too busy to judge the page by a clock. */
const BUSY_MAX = 1.3;
const BYTES_MAX = 250_000;

const VIEWS = [
  ["host", "text=NUMA node"],
  ["apps", "text=5 apps"],
  ["apps/web", "canvas"],
  ["shadows", "text=Hand over…"],
  ["offload", "text=/Moves/"],
  ["updates", "text=forebay update plan"],
  ["fleet", "text=/fleet/i"],
  ["events", "td:has-text('started')"],
];

test("each view of a real host, and what may be done there", { skip: PAGE ? false : "FOREBAY_PAGE names no page" }, () =>
  withBrowser(async (browser) => {
    let bytes = 0;
    const { page, faults } = await open(browser, PAGE);
    page.on("response", async (response) => { bytes += Number(response.headers()["content-length"] ?? 0); });
    await page.waitForSelector("text=NUMA node");
    assert.ok(!page.url().includes("token"), "the token stays in the address bar");

    for (const [path, wanted] of VIEWS) {
      await page.goto(`${new URL(PAGE).origin}/#${path}`);
      await page.waitForSelector(wanted);
      const found = await inaccessible(page);
      assert.deepEqual(found, [], `${path} for who does not see it`);
      if (PICTURES) await page.screenshot({ path: join(PICTURES, `${path.replace("/", "-")}.png`) });
    }

    // Colours and width.
    for (const colorScheme of ["dark", "light"]) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width: 360, height: 740 });
      for (const path of ["host", "apps", "apps/web", "shadows"]) {
        await page.goto(`${new URL(PAGE).origin}/#${path}`);
        await page.waitForSelector(VIEWS.find(([one]) => one === path)[1]);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(wide <= 360, `${path} is ${wide} wide on a telephone`);
        assert.deepEqual(await inaccessible(page), [], `${path}, ${colorScheme}`);
        if (PICTURES && colorScheme === "dark") await page.screenshot({ path: join(PICTURES, `phone-${path.replace("/", "-")}.png`) });
      }
    }
    await page.setViewportSize({ width: 1280, height: 900 });

    // Keys.
    await page.keyboard.press("1");
    await page.waitForSelector("text=NUMA node");
    await page.keyboard.press("2");
    await page.waitForSelector("text=5 apps");
    await page.keyboard.press("/");
    await page.keyboard.type("we");
    await page.waitForSelector("text=/^1 app$/");

    // Pause, after a word about what it does.
    await page.click("text=Only observe…");
    await page.waitForSelector("dialog >> text=Nothing is changed");
    await page.click("text=Leave it");
    assert.match(await page.textContent("#paused"), /Acting/);
    await page.click("text=Only observe…");
    await page.click("#dialog-yes");
    await page.waitForSelector("#paused:has-text('Only observing')");
    await page.click("text=Act again…");
    await page.click("#dialog-yes");
    await page.waitForSelector("#paused:has-text('Acting')");

    // What if, then so.
    await page.goto(`${new URL(PAGE).origin}/#apps/web`);
    await page.getByLabel("Key").fill("ceiling.memory");
    await page.getByLabel("Value").fill("512MiB");
    await page.click("text=What would change?");
    await page.click("#set");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('web')");
    await page.getByLabel("Key").fill("no.such.key");
    await page.click("text=What would change?");
    await page.waitForSelector(".bad:has-text('no.such.key')");

    // A shadow takes over.
    await page.goto(`${new URL(PAGE).origin}/#shadows`);
    const before = await page.textContent("[data-front=shop] dl");
    await page.click("text=Hand over…");
    await page.waitForSelector("dialog >> text=Nothing fails");
    await page.click("#dialog-yes");
    await page.waitForFunction((was) => document.querySelector("[data-front=shop] dl")?.textContent !== was, before);
    await page.waitForSelector("#done:has-text('serves now')");
    assert.deepEqual(faults, []);
    console.log(`views ${VIEWS.length}, bytes of the answers with a length ${bytes}`);
  }));

test("how fast and how small it is", { skip: PAGE ? false : "FOREBAY_PAGE names no page" }, () =>
  withBrowser(async (browser) => {
    const loads = [];
    for (let time = 0; time < LOADS; time += 1) loads.push(await load(browser, PAGE));
    const sorted = (name) => loads.map((one) => one[name]).sort((a, b) => a - b);
    const [useful, thread, bytes, busy] = ["useful_ms", "main_thread_ms", "bytes", "busy"].map(sorted);
    console.log(`first useful paint of ${LOADS} loads: best ${useful[0].toFixed(0)} ms, `
      + `median ${useful[LOADS >> 1].toFixed(0)} ms, worst ${useful.at(-1).toFixed(0)} ms, promised ${PAINT_MS_MAX} ms; `
      + `of the best by its main thread ${thread[0].toFixed(0)} ms; busy by ${busy[0].toFixed(1)}; files ${bytes.at(-1)} bytes`);
    assert.ok(bytes.at(-1) < BYTES_MAX, `${bytes.at(-1)} bytes`);
    // What the page itself computes does not depend on who else does.
    assert.ok(thread[0] < MAIN_THREAD_MS_MAX, `${thread[0]} ms of the main thread at best`);
    // What is promised is promised of a host that is not overloaded: `forebay bench see` holds every machine to it.
    if (busy[0] < BUSY_MAX) assert.ok(useful[0] < PAINT_MS_MAX, `${useful[0]} ms at best`);
    else console.log(`the time until the paint is NOT judged: the machine is busy by ${busy[0].toFixed(1)}`);
  }), { timeout: PATIENCE_MS });
