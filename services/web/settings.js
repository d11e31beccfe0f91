/** How one side is asked: model, strategy, and the strategy's numbers as sliders. */

import { element, stamp } from "./dom.js";
import { round } from "./format.js";

const LAMBDAS = ["lambda1", "lambda2"];
const NAMES = { lambda1: "λ₁ stage I", lambda2: "λ₂ stage II" };
/** First value, least and greatest of numbers that are shares or cosines; of a lambda, the default says. */
const RANGES = {
  budget: [0.25, 0.01, 1],
  mass: [0.5, 0.01, 1],
  tau: [0.5, -1, 1],
  theta: [0.5, 0, 0.99],
  dominant: [0.84375, 0, 1],
};
/** Fields that stand by themselves in a query; other numbers go into its `options`. */
const OWN_FIELDS = new Set([...LAMBDAS, "budget"]);

/** The settings of one side. A conversation keeps those that it was begun with. */
export class Settings {
  /**
   * @param {string} title
   * @param {object[]} models of the API
   * @param {Record<string, Record<string, number|null>>} strategies
   * @param {string} [strategy] instead of the model's default
   */
  constructor(title, models, strategies, strategy) {
    const { root, parts } = stamp("settings-template");
    this.root = root;
    this._parts = parts;
    this._models = models;
    this._strategies = strategies;
    this._knobs = new Map();
    for (const model of models) parts.model.append(modelOption(model));
    parts.model.value = models.find(takesVideos)?.id ?? "";
    parts.model.addEventListener("change", () => this._showModel());
    parts.strategy.addEventListener("change", () => this._showKnobs());
    this._showModel(strategy);
    this.rename(title);
    this.lock(false);
  }

  /**
   * Say whose settings they are.
   * @param {string} title
   */
  rename(title) {
    this._parts.title.textContent = this._parts.legend.textContent = title;
  }

  /** The part of a query that these settings make; what was left at its default is left to the service. */
  query() {
    const query = { model: this._parts.model.value, strategy: this._parts.strategy.value };
    const options = {};
    for (const [name, { number }] of this._knobs) {
      if (number.disabled || number.value === "" || number.value === number.dataset.default) continue;
      (OWN_FIELDS.has(name) ? query : options)[name] = Number(number.value);
    }
    return Object.keys(options).length ? { ...query, options } : query;
  }

  /**
   * A conversation has begun, or a new one may.
   * @param {boolean} locked
   */
  lock(locked) {
    this._parts.fields.disabled = locked;
    this._parts.hint.textContent = locked ? "Kept for the whole conversation. Begin a new one to change them." : "";
    this._parts.hint.hidden = !locked;
  }

  get _model() {
    return this._models.find((model) => model.id === this._parts.model.value);
  }

  _showModel(wanted = this._model?.defaults.strategy) {
    const select = this._parts.strategy;
    select.replaceChildren();
    for (const name of Object.keys(this._strategies)) {
      const option = element("option", { value: name }, name);
      if (name === "occam" && !this._model?.calibrated) {
        option.disabled = true;
        option.textContent = "occam (not calibrated)";
      }
      select.append(option);
    }
    const possible = wanted === "occam" && !this._model?.calibrated ? this._model?.defaults.strategy : wanted;
    select.value = possible ?? "none";
    this._showKnobs();
  }

  /** A slider for each number; the lambdas always, asleep where the strategy has none. */
  _showKnobs() {
    const own = this._strategies[this._parts.strategy.value] ?? {};
    const names = [...LAMBDAS, ...Object.keys(own).filter((name) => !LAMBDAS.includes(name))];
    this._knobs.clear();
    this._parts.knobs.replaceChildren(...names.map((name) => this._knob(name, name in own, own[name])));
  }

  _knob(name, live, given) {
    const { root, parts } = stamp("knob-template");
    const label = NAMES[name] ?? name;
    parts.name.textContent = label;
    const value = this._model?.defaults[name] ?? given;
    const [first, least, most] = RANGES[name] ?? [value, 0, Math.max(2, 3 * (value ?? 1))];
    for (const [input, what] of [[parts.slider, label], [parts.number, `${label}, number`]]) {
      input.setAttribute("aria-label", what);
      input.disabled = !live;
    }
    Object.assign(parts.slider, { min: least, max: round(most), step: (most - least) / 200 });
    Object.assign(parts.number, { min: least });
    parts.number.value = live ? round(value ?? first) : "";
    parts.slider.value = live ? value ?? first : least;
    if (live && value !== null && value !== undefined) parts.number.dataset.default = parts.number.value;
    parts.slider.addEventListener("input", () => (parts.number.value = round(Number(parts.slider.value))));
    parts.number.addEventListener("input", () => (parts.slider.value = parts.number.value));
    this._knobs.set(name, parts);
    return root;
  }
}

function modelOption(model) {
  const option = element("option", { value: model.id }, model.id);
  if (!takesVideos(model)) {
    option.disabled = true;
    option.textContent = `${model.id} (${model.media.join(", ")} only)`;
  }
  return option;
}

const takesVideos = (model) => model.media.includes("video");
