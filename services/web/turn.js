/** One question and its answer, as it comes. */

import { costsOf, summaryOf } from "./costs.js";
import { element, stamp } from "./dom.js";
import { seconds } from "./format.js";
import { problemBox } from "./problems.js";
import { Timeline } from "./timeline.js";

const STAGES = {
  fetch: "Fetch",
  decode: "Decode frames",
  encode: "Encode frames",
  prefill: "Read them",
  generate: "Write",
};

/** A question with what is known of its answer so far. */
export class Turn {
  /** @param {string} question */
  constructor(question) {
    const { root, parts } = stamp("turn-template");
    this.root = root;
    this._parts = parts;
    this._stages = new Map();
    /** What the answer rests on, once it is here and was asked for. */
    this.timeline = null;
    parts.question.textContent = question;
    parts.answer.setAttribute("aria-busy", "true"); // read out when it is whole
    this._stage("waiting", "Working", null, null);
  }

  /**
   * Take an event of the stream.
   * @param {object} event
   */
  take(event) {
    if (event.type === "text") this._parts.answer.append(event.text);
    if (event.type === "progress") this._progress(event);
    if (event.type === "answer") this._finish(event);
  }

  /**
   * The question failed, or was cancelled.
   * @param {Error} error
   */
  fail(error) {
    this._end();
    if (error.name !== "AbortError") return this._parts.problem.append(problemBox(error));
    return this._parts.problem.append(element("p", { class: "hint", role: "status" }, "Cancelled. The service has stopped working on it."));
  }

  /** Another turn came after this one: keep what it rests on out of the way. */
  fold() {
    this._parts.rest.open = false;
  }

  /** Let go of what it holds. */
  close() {
    this.timeline?.close();
  }

  _finish(answer) {
    this._end();
    this._parts.answer.textContent = answer.answer || "The model wrote nothing.";
    this._parts.answer.classList.toggle("empty", !answer.answer);
    this._parts.rest.hidden = false;
    this._parts.rest.open = true;
    this._parts.summary.textContent = summaryOf(answer);
    this._parts.costs.append(costsOf(answer));
    if (answer.evidence?.frames.length) {
      this.timeline = new Timeline(answer.evidence.frames);
      this._parts.evidence.append(this.timeline.root);
    }
  }

  _end() {
    this._parts.stages.hidden = true;
    this._parts.answer.setAttribute("aria-busy", "false");
  }

  _progress({ stage, done, total, seconds: spent }) {
    this._stages.get("waiting")?.root.remove();
    this._stage(stage, STAGES[stage] ?? stage, done, total, spent);
  }

  _stage(name, label, done, total, spent) {
    if (!this._stages.has(name)) {
      const bar = element("progress", { "aria-label": label });
      const note = element("span", { class: "note" });
      const root = element("li", {}, element("span", {}, label), bar, note);
      this._stages.set(name, { root, bar, note });
      this._parts.stages.append(root);
    }
    const { bar, note } = this._stages.get(name);
    if (total) Object.assign(bar, { max: total, value: done });
    note.textContent = [total ? `${done} of ${total}` : "", spent ? seconds(spent) : ""].filter(Boolean).join(" · ");
  }
}
