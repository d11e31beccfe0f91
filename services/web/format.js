/** Numbers as people read them. */

/**
 * Seconds with three digits, in milliseconds below a tenth.
 * @param {number} seconds
 */
export function seconds(seconds) {
  if (seconds === 0) return "0 s";
  return seconds < 0.1 ? `${round(seconds * 1000)} ms` : `${round(seconds)} s`;
}

/**
 * A place in a video: `1:02.5`, or seconds below a minute.
 * @param {number} at
 */
export function clock(at) {
  const rest = at % 60;
  if (at < 60) return `${rest.toFixed(2)} s`;
  return `${Math.floor(at / 60)}:${rest.toFixed(1).padStart(4, "0")}`;
}

/**
 * A share in percent.
 * @param {number} part
 * @param {number} whole
 */
export const percent = (part, whole) => (whole ? `${round((100 * part) / whole, 2)} %` : "–");

/**
 * A count with its noun.
 * @param {number} number
 * @param {string} noun
 */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/**
 * A few significant digits, without zeros at the end.
 * @param {number} value
 * @param {number} [digits]
 */
export const round = (value, digits = 3) =>
  String(Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(digits)));
