// Views of what a lone idle host does not have: accelerators, moves, an update under way and those before,
// other hosts. Names in them are markup, or hold control characters.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { inaccessible, open } from "./browser.js";
import { app, skip, withDashboard } from "./daemon.js";

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
    if (PICTURES) await page.screenshot({ path: join(PICTURES, `full-${path.replace("/", "-")}.png`) });
    assert.deepEqual(faults, []);
  });
}

test("memory by node with what apps keep, and devices with what is planned of them", { skip }, () =>
  withView("host", (daemon) => {
    const MIB = 1 << 20;
    daemon.answers["/v1/host"] = {
      memory: [{ node: 0, total_bytes: 1024 * MIB, free_bytes: 256 * MIB, cache_bytes: 128 * MIB }, { node: 1, total_bytes: 512 * MIB,
        free_bytes: 500 * MIB, cache_bytes: 0 }],
      devices: [{
        device: "8:0", name: MARKUP, read_bytes_per_second: 1, read_requests_per_second: 1, read_p99_seconds: 0.001, writes_measured: false,
        critical: 0.25, room: 0.6, sharers: 2, bound: "delay", pressed_to_percent: 80, used_by: ["web"],
      }],
    };
    const rate = (value) => ({ device: "8:0", read_bytes_per_second: value, write_bytes_per_second: 0, reads_per_second: 1,
      writes_per_second: 0, share: 0.125, demand: null });
    daemon.more = {
      io: { devices: [rate(3 * MIB)] },
      reason: { cpu_demand_cores: 1, cpu_wanted_cores: 1.3, exclusive_cpus: "", memory_demand_bytes: 96 * MIB },
      slice: {
        cpus: "0-1", mems: "1", memory_min_bytes: 64 * MIB, memory_low_bytes: null, memory_high_bytes: "max", io_latency: [],
        io_max: [{ device: "8:0", rbps: 4 * MIB, wbps: "max", riops: "max", wiops: "max" }],
      },
    };
  }, async (page) => {
    await page.waitForSelector("text=Node 0: 640 MiB held, 128 MiB of files, 256 MiB free, of 1.0 GiB");
    await page.waitForSelector("text=Node 1: 12.0 MiB held, 0 B of files, 500 MiB free, of 512 MiB");
    const text = (rows) => page.locator(rows).textContent();
    assert.match(await text("table:has-text('The line in the bar is what each will need') tbody tr"), /^web11.0 MiB1 B96.0 MiB64.0 MiB–max$/);
    assert.match(await text("table:has-text('Parts of a device') tbody tr"), /alert.*25 %60 %2a critical app waits for I\/Oweb$/);
    assert.match(await text("table:has-text('Who uses them now') tbody tr"), /^web.*alert.*3.0 MiB\/s0 B\/s4.0 MiB\/snot held$/);
  }));

test("what an app's slice allowed, on the axis of what it used, and the time that it is to answer in", { skip }, () =>
  withView("apps/web", (daemon) => {
    const rules = { binding: MARKUP, headroom_percent: 30, hold_seconds: 5, response_time_max_ms: 50 };
    daemon.answers["/v1/apps/web"] = {
      app: { ...app("web"), reason: null }, rules, models: null, devices: [], offload: [], external_forecasts: [], shortfalls: [],
    };
    daemon.answers["/v1/history/web/response_time"] = { rows: [{ time_unix_ms: Date.now(), mean: 20, max: 30, demand_q95: null }] };
    const row = (mean) => ({ rows: [{ time_unix_ms: daemon.time - 600_000, mean, max: mean, demand_q95: null }] });
    daemon.answers["/v1/history/web/cpu"] = row(0.5);
    daemon.answers["/v1/history/web/cpu_allowed"] = row(0.75);
    daemon.more = { slice: { cpus: "0-1", cpu_max_cores: 1.5, memory_high_bytes: "max", io_max: [], io_latency: [] } };
  }, async (page) => {
    await page.waitForSelector("dd:has-text('at most 50 ms')");
    const allowed = page.locator(".u-legend tr:has-text('allowed')");
    const first = async () => {
      await allowed.waitFor();
      await page.locator(".u-over").hover({ position: { x: 1, y: 9 } });
      return allowed.textContent();
    };
    const becomes = async (wanted, what) => {
      for (let tries = 0; !wanted.test(await first()); tries += 1) {
        assert.ok(tries < 200, `${what}: ${await first()}`);
        await page.waitForTimeout(50);
      }
    };
    await becomes(/1.50$/, "its quota, which is less than its CPUs");
    await page.getByLabel("Resource").selectOption("response_time");
    await page.waitForSelector(".u-title:has-text('Response time')");
    await becomes(/50 ms$/, "what it is held to");
    await page.getByLabel("Resource").selectOption("cpu");
    await page.getByLabel("Back and ahead").selectOption("1");
    await page.waitForSelector(".u-title:has-text('Processor time')");
    await becomes(/0.75$/, "what the daemon kept of it");
  }));

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
        total_bytes: 4 << 20, took_seconds: 2, stood_seconds: null, left_seconds: 6, owed_bytes: null, why: null,
      }, {
        app: "cache", to: "b", mode: "checkpoint", began_unix_ms: daemon.time, stage: "lending", over: false, sent_bytes: 3 << 20,
        total_bytes: 4 << 20, took_seconds: 4, stood_seconds: 0.2, left_seconds: null, owed_bytes: 21 << 19, why: null,
      }, {
        app: "shop", to: "b", mode: "handoff", began_unix_ms: daemon.time, stage: "moved", over: true, sent_bytes: 0,
        total_bytes: 0, took_seconds: 3, stood_seconds: null, left_seconds: null, owed_bytes: null, why: null,
      }],
    };
    daemon.answers["/v1/moves/web/cancel"] = { messages: ["called off"] };
  }, async (page, daemon) => {
    const row = page.locator("tr:has-text('40.3')");
    await row.waitFor();
    assert.match(await row.textContent(), /web2325 %40.31.57 ×/);
    await page.waitForSelector(`li:has-text("tries ${MARKUP}")`);
    await page.waitForSelector("text=1.0 MiB of 4.0 MiB, 25 %");
    const lending = page.locator("tr:has-text('lending')");
    assert.match(await lending.textContent(), /3.0 MiB of 4.0 MiB, 75 %, 4.0 s so far10.5 MiB of its memory still to come200 ms/);
    assert.equal(await page.locator("text=still to come").count(), 1, "who owes nothing");
    assert.match(await page.locator("tr:has-text('handoff')").textContent(), /movedtook 3.0 s–$/);
    await page.waitForSelector(`text=${SHOWN}`);
    await page.locator("tr:has-text('copying')").getByText("Call off…").click();
    await page.waitForSelector("dialog >> text=the app goes on here");
    assert.deepEqual(daemon.asked, [], "nothing is done before it is confirmed");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('called off')");
    assert.deepEqual(daemon.asked, ["POST /v1/moves/web/cancel"]);
  }));

test("an update is asked for what the daemon takes at each stage, and for nothing else", { skip }, () =>
  withView("updates", (daemon) => {
    const current = { number: 9, command: ["true"], began_unix_ms: daemon.time, stage: "planned", next: "", output: null, held: null, troubles: [] };
    daemon.answers["/v1/update"] = { trouble: null, outdated: [], current, history: [] };
    daemon.answers["/v1/update/abort"] = { messages: ["it is off"] };
    daemon.answers["/v1/update/resume"] = { messages: ["it goes on"] };
  }, async (page, daemon) => {
    const at = async (stage, ...buttons) => {
      daemon.answers["/v1/update"].current.stage = stage;
      daemon.answers["/v1/update"].current.next = `at ${stage}`;
      await page.waitForSelector(`p:text-is("at ${stage}")`);
      assert.deepEqual(await page.locator("main button").allTextContents(), buttons, stage);
    };
    const confirm = async (button, question, done) => {
      await page.click(`text=${button}`);
      await page.waitForSelector(`dialog >> text=${question}`);
      await page.click("#dialog-yes");
      await page.waitForSelector(`#done:has-text('${done}')`);
    };
    for (const stage of ["planned", "locked", "isolated", "leaving", "telling", "synced"]) await at(stage, "Call off…");
    await confirm("Call off…", "has not begun", "it is off");
    await at("updating", "Call off…");
    await confirm("Call off…", "asked to end", "it is off");
    for (const stage of ["rehearsing", "reboot_pending", "departing"]) await at(stage, "Go on without the reboot…");
    await confirm("Go on without the reboot…", "does not begin anew", "it goes on");
    for (const stage of ["reviving", "undoing", "restoring", "verifying", "returning", "closing", "unheard_of"]) await at(stage);
    assert.deepEqual(daemon.asked, ["POST /v1/update/abort", "POST /v1/update/abort", "POST /v1/update/resume"]);
  }));

test("an update under way by its stages, and the receipts of those before", { skip }, () =>
  withView("updates", (daemon) => {
    const pace = (p99) => ({ answers: 9, errors: 0, p50_ms: 1, p99_ms: p99, max_ms: p99 * 2 });
    daemon.answers["/v1/update"] = {
      trouble: null, outdated: ["web"],
      current: {
        number: 8, command: ["apt-get", MARKUP], began_unix_ms: daemon.time, stage: "updating", next: "it runs", output: null,
        held: NASTY, troubles: [],
        rehearsal: { kernel: "6.12.9-amd64", verdict: "failed", why: `no root: ${NASTY}`, seconds: 18.25, console: "/var/lib/console" },
      },
      history: [{
        number: 7, command: ["true"], outcome: "rolled_back", began_unix_ms: daemon.time, ended_unix_ms: daemon.time + 90_000,
        held_times: 2, held_ms: 1500, troubles: ["too slow"],
        rehearsal: { kernel: "6.1.0-57-amd64", verdict: "passed", why: null, seconds: 19, console: "/var/lib/console" },
        clients: [{ front: MARKUP, kept: 7, back: 6, left: 2, pause_ms: 2500 }],
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
    const failed = `.bad:text-is("Kernel 6.12.9-amd64 did not pass its rehearsal, in 18 s: no root: ${SHOWN}")`;
    await page.waitForSelector(failed);
    await page.waitForSelector("text=What the machine said is in /var/lib/console");
    await page.waitForSelector(".good:text-is('Kernel 6.1.0-57-amd64 passed its rehearsal, in 19 s.')");
    const kept = page.locator("table:has-text('over the boot') tbody tr");
    assert.equal(await kept.textContent(), `${MARKUP}7622.5 s`);
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
    await page.waitForSelector(`.bad:has-text("${SHOWN}")`);
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

const EXPLAINED = {
  app: { ...app("web"), reason: null }, models: null, devices: [], offload: [], external_forecasts: [], shortfalls: [],
  rules: { binding: MARKUP, headroom_percent: 30, hold_seconds: 5, response_time_max_ms: null, moves_by: "checkpoint" },
};

test("an app is asked to move only after it was asked whether it could", { skip }, () =>
  withView("apps/web", (daemon) => {
    daemon.answers["/v1/apps/web"] = EXPLAINED;
    daemon.answers["/v1/fleet"] = { host: "a" };
    daemon.answers["/v1/fleet/hosts"] = { hosts: ["a", "b", "c"].map((host) => ({ host, cordoned: host === "c" })) };
    daemon.bodies = [];
    daemon.answers["/v1/moves"] = (_, body) => {
      daemon.bodies.push(body);
      if (body.to === "c") return { refusal: "failed", message: `c takes none: ${NASTY}` };
      return { messages: [body.dry_run ? "web can move to b: it would stand still for about 120 ms" : "web moves to b"] };
    };
  }, async (page, daemon) => {
    const to = page.getByLabel("To host");
    await to.waitFor();
    assert.deepEqual(await to.locator("option").allTextContents(), ["auto: the one with the most room", "b", "c (cordoned)"]);
    await to.selectOption("c");
    await page.click("text=Move…");
    await page.waitForSelector(`dialog .bad:has-text("c takes none: ${SHOWN}")`);
    assert.equal(await page.locator("#dialog-yes").count(), 0, "what is refused cannot be begun");
    await page.click("dialog >> text=Close");
    await to.selectOption("b");
    await page.click("text=Move…");
    await page.waitForSelector("dialog >> text=stand still for about 120 ms");
    await page.waitForSelector("dialog >> text=checkpoint: Its processes go along");
    assert.ok(daemon.bodies.every((body) => body.dry_run), "nothing is begun before it is confirmed");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('web moves to b')");
    assert.deepEqual(daemon.bodies.at(-1), { app: "web", to: "b", dry_run: false });
  }));

test("an app that cannot move says why, and has no control for it", { skip }, () =>
  withView("apps/web", (daemon) => {
    daemon.answers["/v1/apps/web"] = EXPLAINED;
    daemon.answers["/v1/fleet/hosts"] = { refusal: "not_found", message: "this host is alone" };
  }, async (page, daemon) => {
    await page.waitForSelector("text=It can move to no other host: this host is alone");
    assert.equal(await page.locator("text=Move…").isVisible(), false);
    daemon.answers["/v1/apps/web"] = { ...EXPLAINED, rules: { ...EXPLAINED.rules, moves_by: null } };
    await page.waitForSelector("text=it is pinned");
    assert.equal(await page.locator("text=Move…").isVisible(), false);
  }));

test("an app's own events and decisions, for the span that is shown, and past forecasts by all their bands", { skip }, () =>
  withView("apps/web", (daemon) => {
    const DECISIONS = 40;
    daemon.asked_events = [];
    daemon.answers["/v1/apps/web"] = EXPLAINED;
    daemon.answers["/v1/events"] = (url) => {
      const of = Object.fromEntries(url.searchParams);
      if (!of.app) return { events: [] };
      daemon.asked_events.push(of);
      const all = Array.from({ length: DECISIONS }, (_, number) =>
        ({ time_unix_ms: daemon.begun - number * 60_000, app: "web", kind: "decision", message: `decision ${number}` }));
      return { events: all.filter((event) => event.time_unix_ms >= Number(of.since_unix_ms)).reverse() };
    };
    daemon.begun = daemon.time;
    daemon.answers["/v1/history/web/cpu"] = { rows: [] };
    daemon.answers["/v1/history/web/cpu_allowed"] = { rows: [] };
  }, async (page, daemon) => {
    await page.waitForSelector("td:has-text('decision 39')");
    assert.equal(await page.locator("td:text-is('decision')").count(), 40, "more than the latest twelve");
    assert.equal(daemon.asked_events[0].since_unix_ms, "0");
    await page.locator(".u-over").waitFor();
    await page.locator(".u-over").hover({ position: { x: 1, y: 9 } });
    const bands = ["50 %", "90 %", "95 %", "99 %"].map((label) => page.locator(`.u-legend tr:has(.u-label:text-is("${label}")) td`).textContent());
    assert.deepEqual(await Promise.all(bands), ["0.50", "0.60", "0.65", "0.75"]);
    await page.getByLabel("Back and ahead").selectOption("1");
    const hour = () => daemon.asked_events.find((of) => Number(of.since_unix_ms) > 0 && Number(of.since_unix_ms) < daemon.begun - 3_000_000);
    for (let tries = 0; !hour(); tries += 1) {
      assert.ok(tries < 200, JSON.stringify(daemon.asked_events));
      await page.waitForTimeout(50);
    }
    assert.equal(hour().app, "web");
  }));

test("what is drawn anew takes neither the focus nor what was selected", { skip }, () =>
  withView("offload", (daemon) => {
    const move = (name, sent) => ({
      app: name, to: "b", mode: "checkpoint", began_unix_ms: daemon.time, stage: "copying", over: false, sent_bytes: sent << 20,
      total_bytes: 64 << 20, took_seconds: 2, stood_seconds: null, left_seconds: 6, owed_bytes: null, why: null,
    });
    daemon.sends = (...all) => { daemon.answers["/v1/moves"] = { host: "a", trouble: null, coming: [], away: all.map(([name, sent]) => move(name, sent)) }; };
    daemon.sends(["shop", 1], ["web", 1]);
    daemon.answers["/v1/moves/web/cancel"] = { messages: ["called off"] };
    daemon.answers["/v1/apps/web"] = EXPLAINED;
  }, async (page, daemon) => {
    const button = page.locator("tr:has-text('web') button");
    await button.focus();
    // The row before it ends, and its own goes on: the same button, for the same app.
    daemon.sends(["web", 2]);
    await page.waitForSelector("text=2.0 MiB of 64.0 MiB");
    await page.waitForFunction(() => document.querySelectorAll("main button").length === 1);
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Call off…");
    await page.keyboard.press("Enter");
    await page.waitForSelector("dialog >> text=Have web stay?");
    await page.click("#dialog-yes");
    await page.waitForSelector("#done:has-text('called off')");
    assert.deepEqual(daemon.asked, ["POST /v1/moves/web/cancel"]);

    const select = (word) => page.evaluate((wanted) => {
      const words = [...document.querySelectorAll("dt")].find((one) => one.textContent === wanted);
      getSelection().selectAllChildren(words.nextSibling);
      return getSelection().toString();
    }, word);
    const selected = () => page.evaluate(() => getSelection().toString());
    await page.evaluate(() => { location.hash = "#host"; });
    await page.waitForSelector("dt:text-is('Shared CPUs')");
    assert.equal(await select("Shared CPUs"), "1");
    const took = await page.textContent("dt:text-is('Apps that run') + dd");
    daemon.names = ["web", "more"];
    await page.waitForFunction((before) => document.body.textContent.includes("2 of 2") && before === "1 of 1", took);
    assert.equal(await selected(), "1", "the host's numbers");
    await page.evaluate(() => { location.hash = "#apps/web"; });
    await page.waitForSelector("dt:text-is('Class') + dd:text-is('standard')");
    assert.equal(await select("Class"), "standard");
    daemon.answers["/v1/apps/web"] = { ...EXPLAINED, app: { ...EXPLAINED.app, state: "stopped" } };
    await page.waitForSelector("dd:text-is('stopped')");
    assert.equal(await selected(), "standard", "an app's head");
  }));

test("how busy each CPU is, in words that a keyboard reaches", { skip }, () =>
  withView("host", () => {}, async (page) => {
    await page.focus("summary");
    await page.keyboard.press("Enter");
    const rows = page.locator("table:has-text('Each CPU') tbody tr");
    await rows.first().waitFor();
    assert.deepEqual(await rows.allTextContents(), ["0––50 %web", "1–––shared"]);
  }));

test("an app that is constrained by something else than a CPU has its ladder shown, among many", { skip }, () =>
  withView("offload", (daemon) => {
    daemon.names = Array.from({ length: 60 }, (_, number) => `app-${number}`);
    for (const name of daemon.names) daemon.answers[`/v1/apps/${name}`] = { app: { name }, offload: name === "app-59" ? ["waits for memory"] : [] };
  }, async (page) => {
    await page.waitForSelector("li:has-text('waits for memory')");
  }));
