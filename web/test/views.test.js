// Views of what a lone idle host does not have: accelerators, moves, an update under way and those before,
// other hosts. Names in them are markup, or hold control characters.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { inaccessible, open } from "./browser.js";
import { skip, withDashboard } from "./daemon.js";

const PICTURES = process.env.FOREBAY_PICTURES;
const MARKUP = "<img src=x onerror=alert(1)>";
const SHOWN = "a␛[31mb";
const NASTY = "a\u001b[31mb";

/** Opens a view, and checks what every view has to be. */
async function withView(path, prepare, work) {
  await withDashboard(async ({ browser, daemon, url }) => {
    prepare(daemon);
    const { page, faults } = await open(browser, url);
    page.on("dialog", () => assert.fail("markup of a name ran"));
    await page.waitForSelector("text=NUMA node");
    await page.goto(`${new URL(url).origin}/#${path}`);
    await work(page, daemon);
    assert.equal(await page.locator("main img").count(), 0);
    assert.deepEqual(await inaccessible(page), [], path);
    if (PICTURES) await page.screenshot({ path: join(PICTURES, `full-${path}.png`) });
    assert.deepEqual(faults, []);
  });
}

test("accelerators with what a CPU costs, and moves with their progress", { skip }, () =>
  withView("offload", (daemon) => {
    daemon.more = { accelerator: {
      devices: 2, kernels: 3, busy: 0.5, on_cpu_per_second: 1.5, on_devices_per_second: 40.25, shared_bytes: 1 << 20, cpu_price: 7,
    } };
    daemon.answers["/v1/apps/web"] = { app: { name: "web" }, offload: [`tries ${MARKUP}`] };
    daemon.answers["/v1/moves"] = {
      host: "a", trouble: NASTY, coming: [{ app: "db", from: MARKUP, stage: "receiving", why: null }],
      away: [{
        app: "web", to: "b", mode: "checkpoint", began_unix_ms: daemon.time, stage: "copying", over: false, sent_bytes: 1 << 20,
        total_bytes: 4 << 20, took_seconds: 2, stood_seconds: null, left_seconds: 6, why: null,
      }],
    };
    daemon.answers["/v1/moves/web/cancel"] = { messages: ["called off"] };
  }, async (page, daemon) => {
    const row = page.locator("tr:has-text('40.3')");
    await row.waitFor();
    assert.match(await row.textContent(), /web2325 %40.31.57 ×/);
    await page.waitForSelector(`li:has-text("tries ${MARKUP}")`);
    await page.waitForSelector("text=1.0 MiB of 4.0 MiB, 25 %");
    await page.waitForSelector(`text=${SHOWN}`);
    await page.click("text=Call off…");
    await page.waitForSelector("dialog >> text=the app goes on here");
    assert.deepEqual(daemon.asked, [], "nothing is done before it is confirmed");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('called off')");
    assert.deepEqual(daemon.asked, ["POST /v1/moves/web/cancel"]);
  }));

test("an update under way by its stages, and the receipts of those before", { skip }, () =>
  withView("updates", (daemon) => {
    const pace = (p99) => ({ answers: 9, errors: 0, p50_ms: 1, p99_ms: p99, max_ms: p99 * 2 });
    daemon.answers["/v1/update"] = {
      trouble: null, outdated: ["web"],
      current: {
        number: 8, command: ["apt-get", MARKUP], began_unix_ms: daemon.time, stage: "updating", next: "it runs", output: null,
        held: NASTY, troubles: [],
      },
      history: [{
        number: 7, command: ["true"], outcome: "rolled_back", began_unix_ms: daemon.time, ended_unix_ms: daemon.time + 90_000,
        held_times: 2, held_ms: 1500, troubles: ["too slow"],
        fronts: [{ front: "shop", before: pace(3), during: pace(4), held: 5, failed: 0, unknown: 0, hand_overs: [], pause_ms: 12 }],
        apps: [{ app: "web", rung: "restart", reason: "", pause_p50_ms: 1, pause_p99_ms: 6, refused: [], restarted: true,
          exclusive_cpus: "1", memory_floor_bytes: 1 << 20, p99_before_ms: 1, p99_loaded_ms: 1 }],
      }],
    };
    daemon.answers["/v1/update/abort"] = { messages: ["it is undone"] };
  }, async (page, daemon) => {
    await page.waitForSelector("[aria-current=step]:has-text('updating')");
    assert.equal(await page.locator("ol.stages li.good").count(), 6, "the stages before");
    await page.waitForSelector(`text=apt-get ${MARKUP}`);
    await page.waitForSelector(`.bad:has-text("${SHOWN}")`);
    await page.waitForSelector("h2:has-text('Update 7 rolled back')");
    await page.waitForSelector("text=2 times");
    assert.match(await page.locator("tr:has-text('shop')").textContent(), /shop3.00 ms4.00 ms8.00 ms50012 ms/);
    await page.click("text=Call off…");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('it is undone')");
    assert.deepEqual(daemon.asked, ["POST /v1/update/abort"]);
  }));

test("other hosts, the one with the most room by forecast first, and whose apps are", { skip }, () =>
  withView("fleet", (daemon) => {
    const host = (name, needed) => ({
      host: name, version: "0.1.0", address: null, cordoned: name === "c", capacity: { cpus: 8, memory_bytes: 1 << 30 },
      needed: { cpus: needed, memory_bytes: 1 << 29 }, room: {}, apps: [MARKUP], time_unix_ms: daemon.time,
    });
    daemon.answers["/v1/fleet"] = {
      host: "a", coordinator: "etcd", lease_seconds: 9, lost_since_unix_ms: null, lost: NASTY, cordoned: false, hosts: 3, owns: ["web"],
      apps: [{ app: "web", owner: "a", epoch: 4, runs: true, moves: "to b: copying" }],
    };
    daemon.answers["/v1/fleet/hosts"] = { hosts: [host("a", 6), host("b", 1), host("c", 3)] };
    daemon.answers["/v1/fleet/hosts/b/cordon"] = { messages: ["b is cordoned"] };
  }, async (page, daemon) => {
    await page.waitForSelector("td:has-text('to b: copying')");
    await page.waitForSelector(`dd:has-text("${SHOWN}")`);
    const rows = page.locator("table:has-text('The most room') tbody tr");
    await rows.first().waitFor();
    const names = await rows.evaluateAll((all) => all.map((row) => row.firstChild.textContent));
    assert.deepEqual(names, ["b", "c", "a"]);
    await rows.first().locator("button").click();
    await page.waitForSelector("dialog >> text=no more applications");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('b is cordoned')");
    assert.deepEqual(daemon.asked, ["POST /v1/fleet/hosts/b/cordon"]);
  }));
