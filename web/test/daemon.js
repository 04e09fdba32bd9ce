// A daemon of which a test says what it says, and the real dashboard beside it.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { withBrowser } from "./browser.js";

const EXE = process.env.FOREBAY_EXE;
export const skip = EXE ? false : "FOREBAY_EXE names no program";

export function app(name, cpu = 0.5) {
  const band = { q50: cpu, q90: cpu * 1.2, q95: cpu * 1.3, q99: cpu * 1.5, model: "ensemble", cold: false };
  return {
    name, class: "standard", state: "running", ending: null, main_pid: 1, starts: 1,
    usage: { cpu_cores: cpu, cpu_stalled: 0.01, memory_bytes: 1 << 20, response_time_ms: null },
    io: { devices: [] }, traffic: null, demand: { cpu: band, memory: band }, slice: { cpus: "0-1", io_max: [], io_latency: [] },
    reason: null, reclaim: null, page_move: null,
  };
}

/** A daemon of which the test says what it says. */
export class Daemon {
  /** By its own clock, between two messages. */
  step_ms = 100;
  /** By everybody's clock. */
  every_ms = 100;
  /** Messages for each event. */
  events_every = 10;
  /** Nothing is told meanwhile. */
  held = false;
  names = ["web"];
  /** What else is asked for: bodies by path, or what makes one of the request's address and body; one with a `refusal` is a refusal. */
  answers = {};
  /** What was asked to be changed: method and path. */
  asked = [];
  /** What all apps have besides. */
  more = {};
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
      if (request.method !== "GET") this.asked.push(`${request.method} ${request.url}`);
      const url = new URL(request.url, "http://localhost");
      const told = this.answers[url.pathname];
      if (told) return this.answer(told, url, request, response);
      if (!request.url.startsWith("/v1/events")) response.statusCode = 404;
      response.end(JSON.stringify(request.url.startsWith("/v1/events") ? { events: [] } : { refusal: "not_found", message: "nothing here" }));
    });
    this.server.listen(path);
    await once(this.server, "listening");
  }

  async answer(told, url, request, response) {
    let text = "";
    for await (const part of request) text += part;
    const body = typeof told === "function" ? told(url, text ? JSON.parse(text) : null) : told;
    if (body.refusal) response.statusCode = 409;
    response.end(JSON.stringify(body));
  }

  stream(response) {
    response.setHeader("content-type", "text/event-stream");
    const tell = () => {
      this.period += 1;
      this.time += this.step_ms;
      const events = this.period % this.events_every === 0 ? [{ time_unix_ms: this.time, app: this.names[0] ?? null, kind: "slice", message: "<b>bold</b>" }] : [];
      const tick = { status: this.status(), apps: this.names.map((name) => ({ ...app(name), ...this.more })), events, fronts: [] };
      response.write(`event: tick\ndata: ${JSON.stringify(tick)}\n\n`);
    };
    let timer;
    const again = () => {
      if (!this.held) tell();
      timer = setTimeout(again, this.every_ms);
    };
    again();
    response.on("close", () => clearTimeout(timer));
  }

  async end() {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, "close");
  }
}

/** Calls `work({daemon, socket, url, start})` with a dashboard beside a daemon, and ends both. */
export async function withDashboard(work) {
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
