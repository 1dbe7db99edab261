// Numbers and moments in words that people read.

export function count(number, one, many) {
  return `${whole(number)} ${number === 1 ? one : many || one + "s"}`;
}

export function whole(number) {
  return Math.round(number || 0).toLocaleString("en-US");
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export function size(mib) {
  if (mib === null || mib === undefined) return "–";
  if (mib >= 1024 * 1024) return `${(mib / 1024 / 1024).toFixed(1)} TiB`;
  if (mib >= 10240) return `${Math.round(mib / 1024)} GiB`;
  if (mib >= 1024) return `${(mib / 1024).toFixed(1)} GiB`;
  return `${Math.round(mib)} MiB`;
}

/** A pace in MiB/s as networks are sold. */
export function megabits(mibPerSecond) {
  const mbit = mibPerSecond * 8.388608;
  if (mbit >= 10000) return `${Math.round(mbit / 1000)} Gbit/s`;
  if (mbit >= 1000) return `${(mbit / 1000).toFixed(1)} Gbit/s`;
  return `${mbit >= 10 ? Math.round(mbit) : mbit.toFixed(1)} Mbit/s`;
}

/** Of a link's round trip, where a tenth counts. */
export function milliseconds(number) {
  return `${number < 10 ? Number(number.toPrecision(2)) : Math.round(number)} ms`;
}

export function rate(number) {
  if (number === null || number === undefined) return "–";
  if (number === 0) return "0";
  if (number < 10) return number.toFixed(number < 1 ? 2 : 1);
  return whole(number);
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function clock(seconds) {
  const at = new Date(seconds * 1000);
  const time = at.toLocaleTimeString("en-GB");
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

export function hour(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB").slice(0, 5);
}

export function ago(seconds, now) {
  return seconds ? `${span(Math.max(0, now - seconds))} ago` : "–";
}
