// The page beside a daemon that has everything go wrong. The dashboard is the real program, FOREBAY_EXE;
// at its socket answers this test.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { open, withBrowser } from "./browser.js";

const EXE = process.env.FOREBAY_EXE;
const skip = EXE ? false : "FOREBAY_EXE names no program";
const NASTY = ["<img src=x onerror=alert(1)>", "a\u001b[31mb\u0000c", "\u202egnihtemos", "x".repeat(300)];

function app(name, cpu = 0.5) {
  const band = { q50: cpu, q90: cpu * 1.2, q95: cpu * 1.3, q99: cpu * 1.5, model: "ensemble", cold: false };
  return {
    name, class: "standard", state: "running", ending: null, main_pid: 1, starts: 1,
    usage: { cpu_cores: cpu, cpu_stalled: 0.01, memory_bytes: 1 << 20, response_time_ms: null },
    io: { devices: [] }, traffic: null, demand: { cpu: band, memory: band }, slice: { cpus: "0-1", io_max: [], io_latency: [] },
    reason: null, reclaim: null, page_move: null,
  };
}

/** A daemon of which the test says what it says. */
class Daemon {
  names = ["web"];
  time = 1_700_000_000_000;
  period = 0;

  status() {
    return {
      version: "0.0.0-test", period: this.period, time_unix_ms: this.time, uptime_seconds: this.period / 10, paused: false,
      timing: { late_seconds: 0, took_seconds: 0.001, late_p99_seconds: 0.001, overruns: 0 },
      agent: { cpu_seconds: this.period / 1000, resident_bytes: 1 << 24 },
      host: { cpus: [{ id: 0, busy: 0.5, owner: this.names[0] }, { id: 1, busy: null, owner: null }], shared_cpus: "1", memory_available_bytes: 1 << 30 },
      apps: this.names.length, apps_running: this.names.length, shortfalls: [],
    };
  }

  async listen(path) {
    this.server = createServer((request, response) => {
      if (request.url.startsWith("/v1/stream")) return this.stream(response);
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(request.url.startsWith("/v1/events") ? { events: [] } : { refusal: "not_found", message: "nothing here" }));
    });
    this.server.listen(path);
    await once(this.server, "listening");
  }

  stream(response) {
    response.setHeader("content-type", "text/event-stream");
    const tell = () => {
      this.period += 1;
      this.time += 100;
      const events = this.period % 10 === 1 ? [{ time_unix_ms: this.time, app: this.names[0] ?? null, kind: "slice", message: "<b>bold</b>" }] : [];
      const tick = { status: this.status(), apps: this.names.map((name) => app(name)), events, fronts: [] };
      response.write(`event: tick\ndata: ${JSON.stringify(tick)}\n\n`);
    };
    tell();
    const timer = setInterval(tell, 100);
    response.on("close", () => clearInterval(timer));
  }

  async end() {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, "close");
  }
}

/** Calls `work({daemon, socket, url, start})` with a dashboard beside a daemon, and ends both. */
async function withDashboard(work) {
  const directory = await mkdtemp(join(tmpdir(), "forebay-page-"));
  const socket = join(directory, "socket");
  const running = [];
  const start = async (listen) => {
    const child = spawn(EXE, ["dashboard", "--socket", socket, "--listen", listen], { stdio: ["ignore", "pipe", "ignore"] });
    running.push(child);
    const [line] = await once(createInterface({ input: child.stdout }), "line");
    return { child, url: line };
  };
  const daemon = new Daemon();
  await daemon.listen(socket);
  try {
    const { child, url } = await start("127.0.0.1:0");
    await withBrowser((browser) => work({ browser, daemon, socket, url, child, start }));
  } finally {
    for (const child of running) {
      child.kill();
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    }
    await daemon.end().catch(() => {});
    await rm(directory, { recursive: true, force: true });
  }
}

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
    const heap = () => page.evaluate(() => { globalThis.gc?.(); return performance.memory.usedJSHeapSize; });
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
