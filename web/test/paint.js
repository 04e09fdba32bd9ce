// How long a page takes until its first view with its content is painted, and how many bytes it needs.
//
// `node test/paint.js TIMES` opens the page at FOREBAY_PAGE so often, with nothing in a cache, and prints what it
// measured as JSON: for `forebay bench see`.

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { PATIENCE_MS, withBrowser } from "./browser.js";

const SPIN_MS = 30;

/** How much longer things take here now than with a CPU to oneself: time that passes while one computes for `SPIN_MS`. */
function busyness() {
  const [began, before] = [performance.now(), process.cpuUsage()];
  for (;;) {
    const { user, system } = process.cpuUsage(before);
    const computed = (user + system) / 1000;
    if (computed >= SPIN_MS) return Math.max(1, (performance.now() - began) / computed);
  }
}

/**
 * Opens a page with nothing in a cache: milliseconds until its first view was painted, those of them that its main
 * thread had a CPU, bytes of its files, and how busy the machine was.
 */
export async function load(browser, url) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const session = await context.newCDPSession(page);
  // Time of the thread, which does not pass while others have the CPU.
  await session.send("Performance.enable", { timeDomain: "threadTicks" });
  await page.addInitScript(() => {
    // What is looked for is there in one frame, and painted before the next one begins.
    const look = () => {
      if (document.getElementById("view")?.textContent.includes("NUMA node")) {
        requestAnimationFrame(() => { globalThis.usefulAfter = performance.now(); });
      } else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
  const before = busyness();
  await page.goto(url);
  await page.waitForFunction(() => globalThis.usefulAfter !== undefined);
  const { metrics } = await session.send("Performance.getMetrics");
  const [useful, files] = await page.evaluate(() => [
    globalThis.usefulAfter,
    performance.getEntriesByType("resource").filter((one) => !one.name.includes("/v1/"))
      .concat(performance.getEntriesByType("navigation")).map((one) => one.transferSize),
  ]);
  const busy = Math.min(before, busyness());
  await context.close();
  assert.ok(files.length >= 4 && files.every((bytes) => bytes > 0), `something came from a cache: ${files}`);
  return {
    useful_ms: useful,
    main_thread_ms: 1000 * metrics.find((one) => one.name === "TaskDuration").value,
    bytes: files.reduce((sum, one) => sum + one, 0),
    busy,
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const loads = [];
  await withBrowser(async (browser) => {
    for (let time = 0; time < Number(process.argv[2]); time += 1) loads.push(await load(browser, process.env.FOREBAY_PAGE));
  });
  console.log(JSON.stringify(loads));
}
