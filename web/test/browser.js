// A real browser for the tests, without a profile and without the network beyond this host.

import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const BROWSER = process.env.FOREBAY_BROWSER ?? "/usr/bin/chromium";
/** A directory whose files stand in for those in the program, so that a change is tried without a build. */
const ASSETS = process.env.FOREBAY_ASSETS;
/** How long anything is waited for: a busy machine takes its time. */
export const PATIENCE_MS = 60_000;

/** Calls `work(browser)` and leaves nothing behind. */
export async function withBrowser(work) {
  const profile = await mkdtemp(join(tmpdir(), "forebay-browser-"));
  const browser = await chromium.launch({
    executablePath: BROWSER,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--js-flags=--expose-gc", `--crash-dumps-dir=${profile}`],
  });
  try {
    return await work(browser);
  } finally {
    await browser.close();
    await rm(profile, { recursive: true, force: true });
  }
}

/** A page that fails the test by any error of its own. */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.stack ?? String(error)));
  page.on("console", (message) => {
    // What the page asks in vain while there is no daemon is told by itself.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) faults.push(message.text());
  });
  page.on("request", (request) => {
    if (new URL(request.url()).host !== new URL(url).host) faults.push(`asked elsewhere: ${request.url()}`);
  });
  if (ASSETS) {
    await page.route(/\.(js|css|svg|html)$|\/$/, (route) => {
      const name = new URL(route.request().url()).pathname.slice(1) || "index.html";
      return route.fulfill({ path: join(ASSETS, name) });
    });
  }
  await page.goto(url);
  return { page, faults };
}

/** Asks for the bytes that a page has in use, once what nobody needs is gone. What the page itself is told of that is rounded, and old. */
export async function heapOf(page) {
  const session = await page.context().newCDPSession(page);
  await session.send("Performance.enable");
  return async () => {
    await session.send("HeapProfiler.collectGarbage");
    const { metrics } = await session.send("Performance.getMetrics");
    return metrics.find((one) => one.name === "JSHeapUsedSize").value;
  };
}

/** What axe-core finds wrong, one line each. */
export async function inaccessible(page) {
  // Not as an element of the page, which its policy forbids: by the tool that drives the browser.
  const { readFile } = await import("node:fs/promises");
  await page.evaluate(await readFile(AXE, "utf8"));
  const { violations } = await page.evaluate("axe.run(document)");
  return violations.flatMap((one) => one.nodes.map((node) => `${one.id}: ${one.help}: ${node.html.slice(0, 200)} ${node.failureSummary}`));
}
