/**
 * Numbers as people read them, with their units. Pure.
 */

const NOTHING = "–";
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

/** A count: every digit up to 9,999. */
export const count = (n) => (n < 10_000 ? whole : short).format(n);

/** How many a second; `n` null: not known yet. */
export const rate = (n) => (n == null ? NOTHING : `${n < 100 ? tenth.format(n) : count(Math.round(n))}/s`);

export function bytes(n) {
  if (n == null) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit++) n /= 1024;
  return `${n >= 100 ? Math.round(n) : tenth.format(n)} ${units[unit]}`;
}

/** Seconds as a latency: µs, ms or s. */
export function latency(seconds) {
  if (seconds == null) return NOTHING;
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${tenth.format(seconds * 1000)} ms`;
  return `${tenth.format(seconds)} s`;
}

/** Seconds as an age, in its two largest units. */
export function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** The time of day of Unix milliseconds. */
export const time = (ms) => clock.format(ms);
