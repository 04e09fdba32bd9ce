// Numbers as people read them. A value that is not known is a dash, never a zero.

export const NONE = "–";

export function cores(value) {
  if (value === null || value === undefined) return NONE;
  if (typeof value === "string") return value;
  return value < 10 ? value.toFixed(2) : value.toFixed(1);
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  if (typeof value === "string") return value;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function rate(value) {
  return value === null || value === undefined ? NONE : `${bytes(value)}/s`;
}

export function percent(share) {
  return share === null || share === undefined ? NONE : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return NONE;
  return value < 10 ? `${value.toFixed(2)} ms` : value < 1000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(1)} s`;
}

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 1) return milliseconds(value * 1000);
  if (value < 120) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 7200) return `${(value / 60).toFixed(0)} min`;
  if (value < 172800) return `${(value / 3600).toFixed(1)} h`;
  return `${(value / 86400).toFixed(1)} d`;
}

export function count(value) {
  return value === null || value === undefined ? NONE : value.toLocaleString("en");
}

export function clock(unixMs) {
  const time = new Date(unixMs);
  const two = (part) => String(part).padStart(2, "0");
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** How many CPUs are in a list such as `0-3,8`. */
export function width(list) {
  if (!list) return 0;
  return list.split(",").reduce((sum, part) => {
    const [first, last] = part.split("-").map(Number);
    return sum + (last ?? first) - first + 1;
  }, 0);
}
