// What the page computes without a browser: what it remembers, the axis of time, whose ladders are asked for.

import assert from "node:assert/strict";
import { test } from "node:test";
import { COLUMNS, Forecasts, together } from "../src/axis.js";
import { legible, merged } from "../src/happened.js";
import { asked } from "../src/ladders.js";
import { Past } from "../src/past.js";

const SECOND = 1000;

/** A message of the stream with one app. */
function tick(time, cpu) {
  const status = {
    time_unix_ms: time, apps: 1, apps_running: 1, shortfalls: [], agent: { resident_bytes: 1 }, timing: {},
    host: { cpus: [], memory_available_bytes: 7, shared_cpus: "0" },
  };
  const apps = [{ name: "web", class: "batch", state: "running", usage: { cpu_cores: cpu }, demand: null, slice: {}, reason: null }];
  return { status, events: [], apps };
}

test("a clock that is set back leaves times that rise, and what it did not pass again", () => {
  const check = (moments, times, frames) => {
    const past = new Past();
    moments.forEach((moment, index) => past.add(tick(moment, index)));
    const [seen, values] = past.series("web", "cpu");
    assert.deepEqual(seen, times);
    assert.equal(values.at(-1), moments.length - 1, "the latest number is the last");
    assert.deepEqual(past.frames.map(({ time }) => time), frames);
  };
  check([1000, 1250, 2000, 1250, 1500], [1, 1.25, 1.5], [1000]);
  check([1000, 2000, 3000, 1900, 2950], [1, 1.9, 2.95], [1000, 2950]);
  check([5000, 6000, 6000], [5, 6], [5000, 6000]);
  check([9_000_000, 9_001_000, 1000, 2000], [1, 2], [1000, 2000]);
  // A ring that is full and went round.
  const past = new Past();
  for (let moment = 0; moment < 3500; moment += 1) past.add(tick(moment * SECOND, moment));
  past.add(tick(3490 * SECOND, 0));
  const [times] = past.series("web", "cpu");
  assert.equal(times.length, 3000 - 10 + 1);
  assert.ok(times.every((time, index) => index === 0 || time > times[index - 1]));
});

test("a moment has the host's numbers of then", () => {
  const past = new Past();
  past.add(tick(1000, 0), 0.25);
  assert.equal(past.frames[0].status.host.memory_available_bytes, 7);
  assert.equal(past.frames[0].agentCores, 0.25);
});

test("what was and what is forecast share an axis, in order, each with its gaps", () => {
  const band = (value) => ({ q50: value, q90: value, q95: value, q99: value });
  const course = [{ seconds: 1, value: band(10) }, { seconds: 3, value: band(30) }];
  const row = (time) => ({ time, mean: time, ...band(time) });
  const check = (past, ahead, from, expected) => {
    const [times, ...columns] = together(past, ahead, from);
    for (const column of columns) assert.equal(column.length, times.length);
    const of = (name) => columns[COLUMNS.indexOf(name)];
    assert.deepEqual(times.map((time, index) => [time, of("mean")[index], of("q99")[index]]), expected);
  };
  check([row(1), row(2)], course, 2, [[1, 1, 1], [2, 2, 2], [3, null, 10], [5, null, 30]]);
  // Held at 2: what came then is shown beside what was forecast, and lines of both go on.
  check([row(1), row(2), row(3), row(4)], course, 2, [[1, 1, 1], [2, 2, 2], [3, 3, 10], [4, 4, undefined], [5, null, 30]]);
  // Without a forecast of then there is none, and what came is there.
  check([row(1), row(2), row(3)], [], 2, [[1, 1, 1], [2, 2, 2], [3, 3, null]]);
  // A point of the forecast between two of the past breaks neither line.
  check([row(1), row(1.5), row(4.5)], course, 1, [[1, 1, 1], [1.5, 1.5, undefined], [2, undefined, 10], [4, undefined, 30], [4.5, 4.5, undefined]]);
});

test("a moment's forecast is the latest that was known then, and none of long before", () => {
  const forecasts = new Forecasts();
  for (const time of [10, 15, 20]) forecasts.add(time, [time]);
  const check = (time, course) => assert.deepEqual(forecasts.at(time, 15)?.course ?? null, course);
  check(9, null);
  check(10, [10]);
  check(19.9, [15]);
  check(35, [20]);
  check(36, null);
  // The clock was set back: what it passes again was never forecast.
  forecasts.add(12, [12]);
  check(20, [12]);
  for (let time = 100; time < 400; time += 1) forecasts.add(time, []);
  assert.equal(forecasts.told.length, 180);
});

test("events that come from two sides are one list", () => {
  const event = (time_unix_ms, message = "") => ({ time_unix_ms, kind: "slice", message });
  const times = (list) => list.map((one) => one.time_unix_ms);
  assert.deepEqual(times(merged([event(1), event(3)], [event(2), event(3)], 9)), [1, 2, 3]);
  assert.deepEqual(times(merged([event(3, "a")], [event(3, "b"), event(1)], 2)), [3, 3]);
  assert.deepEqual(times(merged([], [event(1), event(2)], 1)), [2]);
});

test("numbers that would lie on each other are left out", () => {
  assert.deepEqual(legible([0, 2, 4, 100, 110, 130]), [2, 4, 5]);
  assert.deepEqual(legible([]), []);
});

test("no ladder is missed, whatever constrains an app", () => {
  const running = Array.from({ length: 40 }, (_, number) => ({ name: `app-${number}`, usage: { cpu_stalled: number < 20 ? 0.5 : null } }));
  const seen = new Set();
  let turn = 0;
  for (let round = 0; round < 14; round += 1) {
    const chosen = asked(running, new Set(), turn, 12);
    assert.equal(new Set(chosen.names).size, 12);
    turn = chosen.turn;
    for (const name of chosen.names) seen.add(name);
  }
  assert.equal(seen.size, 40, "those that wait for no CPU are asked for");
  // Those that are constrained by anything are asked for each time.
  const climbing = new Set(["app-33", "app-39"]);
  for (let round = 0; round < 5; round += 1) {
    const chosen = asked(running, climbing, turn, 12);
    assert.ok([...climbing].every((name) => chosen.names.includes(name)));
    turn = chosen.turn;
  }
  // Many of them take turns as well.
  const many = new Set(running.slice(0, 30).map(({ name }) => name));
  const heard = new Set();
  for (let round = 0; round < 20; round += 1) {
    const chosen = asked(running, many, turn, 12);
    turn = chosen.turn;
    for (const name of chosen.names) heard.add(name);
  }
  assert.equal(heard.size, 40);
  assert.deepEqual(asked([], new Set(), 5, 12), { names: [], turn: 0 });
  assert.equal(asked(running.slice(0, 3), new Set(), 2, 12).names.length, 3);
});
