// What was seen since the page was opened, in a bounded room: the numbers of each app, and the host at
// each moment that one can scrub back to.

import { allowedBytes, allowedCpus } from "./slices.js";

/** What is kept of each app, one number a moment. */
export const SERIES = ["cpu", "memory", "stalled", "response", "q50", "q90", "q95", "q99", "memory95", "cpus", "bytes"];

/** Numbers kept in all: 16 MiB of them, whatever the number of apps. */
const NUMBERS_MAX = 4 << 20;
/** Moments kept of each app, when they are few. */
const MOMENTS_MAX = 3000;
const MOMENTS_MIN = 60;
/** Moments of the host, and the least time between two of them. */
const FRAMES_MAX = 900;
const FRAMES_MIN = 30;
/** Apps in all of these together, some hundred bytes each: many apps are remembered for less long. */
const FRAME_APPS_MAX = 200_000;
const FRAME_MS = 1000;
/** Events kept. */
const EVENTS_MAX = 500;

export class Past {
  constructor() {
    /** @type {Map<string, {times: Float64Array, values: Record<string, Float32Array>, next: number, length: number}>} */
    this.apps = new Map();
    this.frames = [];
    this.events = [];
  }

  /** Takes a message of the stream in, with the processor time of the agent by then, in CPUs. */
  add(tick, agentCores = null) {
    this.events.push(...tick.events);
    this.events.splice(0, Math.max(0, this.events.length - EVENTS_MAX));
    const time = tick.status.time_unix_ms;
    const room = Math.floor(NUMBERS_MAX / SERIES.length / Math.max(1, tick.apps.length));
    const moments = Math.max(MOMENTS_MIN, Math.min(MOMENTS_MAX, room));
    const seen = new Set();
    for (const app of tick.apps) {
      seen.add(app.name);
      let ring = this.apps.get(app.name);
      if (!ring || ring.times.length > 2 * moments) {
        ring = {
          times: new Float64Array(moments), next: 0, length: 0,
          values: Object.fromEntries(SERIES.map((name) => [name, new Float32Array(moments)])),
        };
        this.apps.set(app.name, ring);
      }
      forget(ring, time / 1000);
      const values = numbers(app);
      ring.times[ring.next] = time / 1000;
      for (const name of SERIES) ring.values[name][ring.next] = values[name] ?? NaN;
      ring.next = (ring.next + 1) % ring.times.length;
      ring.length = Math.min(ring.length + 1, ring.times.length);
    }
    for (const name of this.apps.keys()) if (!seen.has(name)) this.apps.delete(name);

    // A clock that was set back: what it passes again is forgotten, two moments at one place would be a riddle.
    while (this.frames.length && this.frames.at(-1).time > time) this.frames.pop();
    const last = this.frames.at(-1);
    if (!last || time - last.time >= FRAME_MS) {
      this.frames.push(frame(tick, agentCores));
      const room = Math.floor(FRAME_APPS_MAX / Math.max(1, tick.apps.length));
      const moments = Math.max(FRAMES_MIN, Math.min(FRAMES_MAX, room));
      this.frames.splice(0, Math.max(0, this.frames.length - moments));
    }
  }

  /** One series of an app in order of time: `[times, values]`, gaps as null. */
  series(app, name) {
    const ring = this.apps.get(app);
    if (!ring) return [[], []];
    const times = [];
    const values = [];
    const first = (ring.next - ring.length + ring.times.length) % ring.times.length;
    for (let index = 0; index < ring.length; index += 1) {
      const at = (first + index) % ring.times.length;
      const value = ring.values[name][at];
      times.push(ring.times[at]);
      values.push(Number.isNaN(value) ? null : value);
    }
    return [times, values];
  }
}

/** Drops what is not before a time, in seconds: times have to rise on an axis, and a clock may be set back. */
function forget(ring, time) {
  const room = ring.times.length;
  while (ring.length > 0 && ring.times[(ring.next - 1 + room) % room] >= time) {
    ring.next = (ring.next - 1 + room) % room;
    ring.length -= 1;
  }
}

function numbers(app) {
  const { usage, demand, slice } = app;
  return {
    cpu: usage.cpu_cores, memory: usage.memory_bytes, stalled: usage.cpu_stalled,
    response: usage.response_time_ms, q50: demand?.cpu.q50, q90: demand?.cpu.q90, q95: demand?.cpu.q95,
    q99: demand?.cpu.q99, memory95: demand?.memory.q95, cpus: allowedCpus(slice), bytes: allowedBytes(slice),
  };
}

/** The host and its apps at one moment, without what nobody scrubs back for. */
function frame(tick, agentCores) {
  const { host, apps, apps_running, agent, timing, shortfalls } = tick.status;
  return {
    time: tick.status.time_unix_ms,
    cpus: host.cpus,
    status: {
      host: { memory_available_bytes: host.memory_available_bytes, shared_cpus: host.shared_cpus }, apps, apps_running,
      agent: { resident_bytes: agent.resident_bytes }, timing, shortfalls,
    },
    agentCores,
    apps: tick.apps.map((app) => ({
      name: app.name, class: app.class, state: app.state, slice: { cpus: app.slice.cpus },
      usage: app.usage, demand: app.demand && { cpu: app.demand.cpu, memory: app.demand.memory },
      reason: app.reason && { exclusive_cpus: app.reason.exclusive_cpus },
    })),
  };
}
