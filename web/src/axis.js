// The past and the forecast of one number on one axis of time.

/** What a row of the past has behind its time, in the order of the chart's lines. */
export const COLUMNS = ["mean", "greatest", "expected", "q50", "q90", "q95", "q99", "allowed"];
const BANDS = ["q50", "q90", "q95", "q99"];

/**
 * Times and one array for each of the columns, as uPlot wants them. `past` is rows of `{time, ...}`, in seconds and in
 * order; `course` is a forecast that was made at `from`: `[{seconds, value}]`. `past` may go on behind `from`, where a
 * page is held: what came then is drawn beside what was forecast, and the bands are the forecast's.
 *
 * A number that is missing is null, which ends a line; one that belongs to the other of both is undefined, over which
 * a line goes on.
 */
export function together(past, course, from) {
  const times = [];
  const columns = COLUMNS.map(() => []);
  const put = (time, row, own, missing) => {
    times.push(time);
    COLUMNS.forEach((name, index) => columns[index].push(own(name) ? row[name] ?? null : missing));
  };
  const ahead = course.map(({ seconds, value }) => ({ time: from + seconds, ...value })).filter(({ time }) => time > from);
  const isBand = (name) => BANDS.includes(name);
  let next = 0;
  for (const row of past) {
    for (; next < ahead.length && ahead[next].time < row.time; next += 1) put(ahead[next].time, ahead[next], isBand, undefined);
    const behind = row.time > from;
    if (next < ahead.length && ahead[next].time === row.time) {
      put(row.time, { ...row, ...Object.fromEntries(BANDS.map((name) => [name, ahead[next][name]])) }, () => true);
      next += 1;
    } else if (behind && ahead.length) put(row.time, row, (name) => !isBand(name), undefined);
    else if (behind) put(row.time, { ...row, ...NO_BANDS }, () => true);
    else put(row.time, row, () => true);
  }
  for (; next < ahead.length; next += 1) put(ahead[next].time, ahead[next], isBand, null);
  return [times, ...columns];
}

const NO_BANDS = Object.fromEntries(BANDS.map((name) => [name, null]));

/** Forecasts that are remembered: those of a quarter of an hour, one each five seconds. */
const FORECASTS_MAX = 180;

/** The forecasts that a page was told, by the time that each is of. */
export class Forecasts {
  constructor() {
    /** @type {{time: number, course: {seconds: number, value: object}[]}[]} */
    this.told = [];
  }

  /** Takes one in that is of a time, in seconds; those of times that a clock passes again are forgotten. */
  add(time, course) {
    while (this.told.length && this.told.at(-1).time >= time) this.told.pop();
    this.told.push({ time, course });
    this.told.splice(0, this.told.length - FORECASTS_MAX);
  }

  /** The latest that was known at a time, if it is of at most `seconds` before; null otherwise. */
  at(time, seconds) {
    const found = this.told.findLast((one) => one.time <= time);
    return found && time - found.time <= seconds ? found : null;
  }
}
