/** The playground: one video, one question at a time, one or two ways to ask it. */

import * as api from "./api.js";
import { byId } from "./dom.js";
import { Lane } from "./lane.js";
import { Problem } from "./problems.js";
import { Settings } from "./settings.js";
import { Source } from "./source.js";

/** The page's parts and what is between them. */
class Playground {
  constructor() {
    this._source = new Source();
    this._lanes = [];
    this._asking = false;
    this._listen();
    this._showKey();
    this._load();
  }

  _listen() {
    this._source.addEventListener("change", () => this._restart());
    byId("composer").addEventListener("submit", (event) => this._onAsk(event));
    byId("question").addEventListener("keydown", (event) => this._onKey(event));
    byId("question").addEventListener("input", () => this._show());
    byId("cancel").addEventListener("click", () => this._cancel());
    byId("new").addEventListener("click", () => this._restart());
    byId("compare").addEventListener("click", () => this._compare(this._lanes.length === 1));
    byId("retry").addEventListener("click", () => this._load());
    byId("key").addEventListener("change", (event) => this._onKeyGiven(event.target.value.trim()));
    addEventListener("offline", () => this._notice(new Problem({ message: "You are offline." })));
    addEventListener("online", () => this._load());
  }

  /** Ask the service what it offers; the settings are kept if they are there already. */
  async _load() {
    try {
      const [models, strategies] = await Promise.all([api.models(), api.strategies()]);
      this._notice(null);
      if (this._lanes.length) return;
      this._offer = { models, strategies };
      this._compare(false);
    } catch (problem) {
      this._notice(problem);
      if (problem.status === 401) this._askForKey();
    }
  }

  /** One lane, or two. Both are asked the same, so that the conversation begins anew. */
  _compare(both) {
    for (const lane of this._lanes) lane.reset();
    const { models, strategies } = this._offer;
    const kept = this._lanes[0]?.settings;
    const [a, b] = both ? ["A", "B"] : ["Settings"];
    const first = kept ?? new Settings(a, models, strategies);
    first.rename(both ? "Settings of A" : a);
    this._lanes = [new Lane(both ? "A" : "Answers", first)];
    if (both) this._lanes.push(new Lane(b, new Settings("Settings of B", models, strategies, other(first.query().strategy))));
    for (const lane of this._lanes) lane.addEventListener("choose", ({ detail }) => this._onChoose(detail));
    byId("settings").replaceChildren(...this._lanes.map((lane) => lane.settings.root));
    byId("lanes").replaceChildren(...this._lanes.map((lane) => lane.root));
    byId("lanes").classList.toggle("two", both);
    byId("compare").setAttribute("aria-pressed", String(both));
    byId("compare").textContent = both ? "Stop comparing" : "Compare with a second strategy";
    this._show();
  }

  async _onAsk(event) {
    event.preventDefault();
    const field = byId("question");
    const question = field.value.trim();
    if (!question || !this._source.video || this._asking) return;
    field.value = "";
    this._asking = true;
    const choice = { evidence: byId("evidence").checked, ...range() };
    const { id } = this._source.video;
    const asked = this._lanes.map((lane) => lane.ask(id, question, choice));
    this._show();
    await Promise.all(asked);
    this._asking = false;
    for (const lane of this._lanes) lane.follow(this._lanes[0].shown); // what is compared is the same frame
    this._show();
  }

  _onKey(event) {
    if (event.key === "Escape") this._cancel();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  }

  _onChoose(frame) {
    this._source.seek(frame.pts_s);
    for (const lane of this._lanes) lane.follow(frame);
  }

  _onKeyGiven(value) {
    api.key.set(value);
    this._showKey();
    this._load();
  }

  _cancel() {
    for (const lane of this._lanes) lane.cancel();
    byId("question").focus();
  }

  /** A new conversation, about this video or another one. */
  _restart() {
    for (const lane of this._lanes) lane.reset();
    this._show();
  }

  /** What may be pressed now, and why not. */
  _show() {
    const { video } = this._source;
    const begun = this._lanes.some((lane) => lane.begun);
    const bound = this._lanes.some((lane) => lane.bound);
    const ready = Boolean(video && this._lanes.length && !this._asking);
    // What is hidden loses the focus, and the keyboard its place.
    const { activeElement } = document;
    byId("ask").disabled = !ready || !byId("question").value.trim();
    byId("ask").hidden = this._asking;
    byId("cancel").hidden = !this._asking;
    if (activeElement === byId("ask") && this._asking) byId("cancel").focus();
    if (activeElement === byId("cancel") && !this._asking) byId("question").focus();
    byId("new").disabled = !begun || this._asking;
    byId("compare").disabled = this._asking || !this._lanes.length;
    byId("range").disabled = bound;
    byId("welcome").hidden = begun;
    byId("lanes").hidden = !begun;
    byId("composer-hint").textContent = hint(video, bound);
  }

  _showKey() {
    byId("key").value = api.key.get();
    byId("key-set").hidden = !api.key.get();
  }

  _askForKey() {
    byId("key-panel").open = true;
    byId("key").focus();
  }

  _notice(problem) {
    byId("notice").hidden = !problem;
    byId("notice-text").textContent = problem ? [`${problem.headline}.`, problem.message, problem.facts].filter(Boolean).join(" ") : "";
  }
}

/** The range's fields that are filled in. */
function range() {
  const given = [["start_s", byId("start")], ["end_s", byId("end")]].filter(([, input]) => input.value !== "");
  return Object.fromEntries(given.map(([name, input]) => [name, Number(input.value)]));
}

function hint(video, bound) {
  if (!video) return "Load a video first.";
  return bound ? "A follow-up goes on with this conversation." : "Enter asks, Shift+Enter begins a new line.";
}

/** What is worth a comparison with a strategy. */
const other = (strategy) => (strategy === "none" ? "occam" : "none");

new Playground();
