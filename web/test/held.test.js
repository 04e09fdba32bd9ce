// A page that is held: by the button, the slider and the space bar; what it shows of then, and what it says is of now.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inaccessible, open } from "./browser.js";
import { app, skip, withDashboard } from "./daemon.js";

const GIB = 1024 ** 3;

/** From now on the daemon tells of so much memory, and of apps that use so many CPUs. */
function tells(daemon, gib, cpus) {
  const { status } = Object.getPrototypeOf(daemon);
  daemon.status = () => {
    const told = status.call(daemon);
    return { ...told, host: { ...told.host, memory_available_bytes: gib * GIB } };
  };
  daemon.more = { usage: { ...app("web").usage, cpu_cores: cpus } };
}

/** Waits until the page has remembered so many more moments, each of a second. */
async function pass(page, moments) {
  const max = () => page.evaluate(() => Number(document.getElementById("scrub").max));
  const wanted = (await max()) + moments;
  await page.waitForFunction((least) => Number(document.getElementById("scrub").max) >= least, wanted);
}

const scrub = (page, value) => page.evaluate((to) => {
  const slider = document.getElementById("scrub");
  slider.value = String(to);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}, value);

const see = (page, path) => page.evaluate((to) => { location.hash = `#${to}`; }, path);

test("what is held stays, and what goes on says so", { skip }, () =>
  withDashboard(async ({ browser, daemon, url }) => {
    tells(daemon, 1, 0.5);
    daemon.answers["/v1/host"] = { memory: [{ node: 0, total_bytes: GIB, free_bytes: GIB, cache_bytes: 0 }], devices: [] };
    const { page, faults } = await open(browser, url);
    const had = page.locator(".facts div:has-text('Memory to be had') dd");
    await page.waitForSelector("dd:text-is('1.0 GiB')");
    await pass(page, 3);
    await page.click("#hold");
    await page.waitForSelector("#held:has-text('Held at')");
    assert.equal(await page.textContent("#hold"), "Live");
    const held = await page.textContent("#time");
    assert.match(held, /^shown: /);
    tells(daemon, 2, 3);
    await pass(page, 3);
    assert.equal(await page.textContent("#time"), held);
    assert.equal(await had.textContent(), "1.0 GiB", "the host's numbers are of then");
    assert.ok(await page.locator("h2:has-text('Memory') .now").isVisible(), "its memory by node is of now, and says so");
    assert.deepEqual(await inaccessible(page), []);
    await see(page, "apps");
    await page.waitForSelector("td:text-is('0.50')");
    await see(page, "events");
    await page.waitForSelector("#held:has-text('does not go back')");
    await page.click("#hold");
    await page.waitForSelector("#held", { state: "hidden" });
    await see(page, "host");
    await page.waitForSelector("dd:text-is('2.0 GiB')");
    assert.equal(await page.locator(".now:visible").count(), 0);

    // The slider goes back to the first moment, and to the present at its end.
    await scrub(page, 0);
    await page.waitForSelector("dd:text-is('1.0 GiB')");
    await pass(page, 2);
    assert.equal(await page.inputValue("#scrub"), "0");
    await scrub(page, await page.getAttribute("#scrub", "max"));
    await page.waitForSelector("#held", { state: "hidden" });
    assert.deepEqual(faults, []);
  }));

test("the space bar holds the page wherever it does nothing else", { skip }, () =>
  withDashboard(async ({ browser, url }) => {
    const { page, faults } = await open(browser, url);
    await page.waitForSelector("text=NUMA node");
    const isHeld = () => page.locator("#held").isVisible();
    const toggles = async (what, focus) => {
      await focus();
      for (const state of ["visible", "hidden"]) {
        await page.keyboard.press(" ");
        await page.waitForSelector("#held", { state }).catch(() => assert.fail(`${what}: not ${state}`));
      }
    };
    await toggles("body", () => page.evaluate(() => document.activeElement.blur()));
    await toggles("a link", () => page.focus("nav a"));
    await toggles("an app's link", () => page.focus("main a"));
    // On a button, a field and a list it does what it does there.
    await page.focus("#scrub");
    await page.keyboard.press(" ");
    await page.focus("#pause");
    await page.keyboard.press(" ");
    await page.waitForSelector("#dialog:has-text('Only observe?')");
    await page.keyboard.press("2");
    await page.click("#dialog >> text=Leave it");
    await page.waitForSelector("text=NUMA node");
    await page.focus("summary");
    await page.keyboard.press(" ");
    await page.waitForSelector("td:text-is('50 %')");
    assert.equal(await isHeld(), false);
    assert.deepEqual(faults, []);
  }));

test("an app's chart goes on behind the moment that is held, with the forecast of then or none", { skip }, () =>
  withDashboard(async ({ browser, daemon, url }) => {
    tells(daemon, 1, 0.5);
    daemon.answers["/v1/forecast/web"] = () => ({ resources: [{ resource: "cpu", course: [5, 600].map((seconds) =>
      ({ seconds, value: { q50: 6, q90: 7, q95: 8, q99: 9 } })) }] });
    const { page, faults } = await open(browser, url);
    await page.waitForSelector("text=NUMA node");
    await pass(page, 3);
    await see(page, "apps/web");
    const legend = async (label) => {
      const over = page.locator(".u-over");
      const { width } = await over.boundingBox();
      await over.hover({ position: { x: width - 1, y: 9 } });
      return page.locator(`.u-legend tr:has-text('${label}') td`).textContent();
    };
    const until = async (label, wanted) => {
      const deadline = Date.now() + 30_000;
      for (let seen; (seen = await legend(label)) !== wanted;) {
        assert.ok(Date.now() < deadline, `${label}: ${seen}, not ${wanted}`);
        await page.waitForTimeout(50);
      }
    };
    await page.locator(".u-over").waitFor();
    await until("99 %", "9.00");
    assert.equal(await legend("used"), "–");
    tells(daemon, 1, 3);
    await pass(page, 2);
    // A moment of which the page knows the forecast.
    await page.click("#hold");
    await page.waitForSelector("text=what was forecast then.");
    await until("99 %", "9.00");
    // One before the page asked for any: there is none, and what came is shown.
    await scrub(page, 0);
    await page.waitForSelector("text=no forecast of that moment");
    await until("used", "3.00");
    assert.equal(await legend("99 %"), "–", "the present forecast is none of then");
    assert.ok(await page.locator("h2:has-text('Why') .now").isVisible());
    assert.deepEqual(await inaccessible(page), []);
    await page.click("#hold");
    await until("99 %", "9.00");
    assert.deepEqual(faults, []);
  }));
