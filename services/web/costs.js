/** What an answer cost: tokens from stage to stage, seconds by stage. */

import { element } from "./dom.js";
import { percent, seconds } from "./format.js";

const SECONDS = [
  ["fetch", "fetch_s"],
  ["decode", "decode_s"],
  ["encode", "encode_s"],
  ["prefill", "prefill_s"],
  ["first text", "ttft_s"],
  ["total", "total_s"],
];

/**
 * Two tables with bars.
 * @param {object} answer
 */
export function costsOf({ usage, timings, occam }) {
  const { encoded, stage1, stage2 } = usage.visual_tokens;
  const tokens = [["encoded", encoded], ["after stage I", stage1], ["after stage II", stage2]];
  const longest = Math.max(...SECONDS.map(([, field]) => timings[field]));
  return element(
    "div",
    { class: "costs" },
    table("Visual tokens", "tokens", tokens.map(([name, number]) => [name, number.toLocaleString("en"), number / encoded, percent(number, encoded)])),
    table("Seconds", "seconds", SECONDS.map(([name, field]) => [name, seconds(timings[field]), timings[field] / longest])),
    element("ul", { class: "chips", "aria-label": "More" }, ...chips(usage, occam).map((text) => element("li", {}, text))),
  );
}

/**
 * The cost in one line.
 * @param {object} answer
 */
export function summaryOf({ usage, timings, occam }) {
  const { encoded, stage2 } = usage.visual_tokens;
  const kept = `${stage2.toLocaleString("en")} of ${encoded.toLocaleString("en")} visual tokens (${percent(stage2, encoded)})`;
  const cached = occam.cache === "none" ? "" : ` · cache: ${occam.cache}`;
  return `${kept} · ${seconds(timings.total_s)}${cached}`;
}

function table(caption, kind, rows) {
  const lines = rows.map(([name, text, share, note = ""]) => {
    const bar = element("span", { class: "fill" });
    bar.style.width = `${100 * Math.min(share || 0, 1)}%`;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", { class: "track", "aria-hidden": "true" }, element("span", { class: "bar" }, bar)),
      element("td", { class: "number" }, text),
      ...(kind === "tokens" ? [element("td", { class: "note" }, note)] : []),
    );
  });
  return element("table", { class: kind }, element("caption", {}, caption), element("tbody", {}, ...lines));
}

function chips(usage, occam) {
  const chips = [occam.cache === "none" ? "computed anew" : `cache: ${occam.cache}`, `strategy: ${occam.strategy}`];
  if (occam.lambda1 !== null) chips.push(`λ₁ ${Number(occam.lambda1.toPrecision(4))}`, `λ₂ ${Number(occam.lambda2.toPrecision(4))}`);
  chips.push(`${usage.cached_tokens} of ${usage.prompt_tokens} prompt tokens cached`);
  if (occam.approximate) chips.push("approximate state (int8 wire)");
  if (occam.finish_reason === "length") chips.push("cut off at the token limit");
  return chips;
}
