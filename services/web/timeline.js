/** The frames of an answer by time, and the chosen one with its kept patches. */

import * as api from "./api.js";
import { element, stamp } from "./dom.js";
import { clock, percent, round } from "./format.js";
import { haveScores, maskOf } from "./mask.js";

const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
/** Each picture costs the service a decoding of its frame. */
const AT_A_TIME = 2;

/** What an answer rests on. Fires `choose` with the frame as `detail` when a person picks one. */
export class Timeline extends EventTarget {
  /** @param {object[]} frames of `evidence` */
  constructor(frames) {
    super();
    const { root, parts } = stamp("evidence-template");
    this.root = root;
    this._parts = parts;
    this._frames = frames;
    this._view = "kept";
    this._pictures = new Pictures();
    this._buttons = frames.map((frame, number) => this._button(frame, number));
    parts.frames.append(...this._buttons);
    parts.frames.addEventListener("keydown", (event) => this._onKey(event));
    parts.views.hidden = !haveScores(frames);
    parts.views.addEventListener("click", (event) => this._look(event.target.dataset.view));
    this._watchThumbs();
    this.show(fullest(frames));
  }

  /**
   * Show a frame large.
   * @param {number} number
   */
  show(number) {
    this._shown = number;
    this._buttons.forEach((button, each) => {
      button.setAttribute("aria-selected", String(each === number));
      button.tabIndex = each === number ? 0 : -1;
    });
    const frame = this._frames[number];
    this._parts.caption.textContent = caption(frame);
    this._parts.picture.setAttribute("aria-label", `Frame at ${clock(frame.pts_s)}, ${frame.kept} of ${frame.of} patches kept`);
    this._parts.picture.setAttribute("role", "img");
    this._draw(this._parts.picture, frame, this._view);
  }

  /** The frame that is shown large. */
  get shown() {
    return this._frames[this._shown];
  }

  /**
   * Show the frame of another timeline that is this one's too.
   * @param {object} other
   */
  follow(other) {
    const number = this._frames.findIndex((frame) => frame.index === other.index && frame.medium === other.medium);
    if (number >= 0) this.show(number);
  }

  /** Stop loading pictures, and let go of those that are here. */
  close() {
    this._observer.disconnect();
    this._pictures.close();
  }

  _button(frame, number) {
    const { root, parts } = stamp("frame-template");
    parts.time.textContent = clock(frame.pts_s);
    parts.bar.style.width = `${(100 * frame.kept) / frame.of}%`;
    root.setAttribute("aria-label", `${clock(frame.pts_s)}, ${frame.kept} of ${frame.of} kept`);
    root.title = `${frame.kept} of ${frame.of} patches kept`;
    parts.thumb.append(maskOf(frame, "kept"));
    root.addEventListener("click", () => this._choose(number));
    return root;
  }

  _choose(number) {
    this.show(number);
    this.dispatchEvent(new CustomEvent("choose", { detail: this._frames[number] }));
  }

  _onKey(event) {
    const last = this._frames.length - 1;
    const wanted = { Home: 0, End: last }[event.key] ?? this._shown + (STEPS[event.key] ?? NaN);
    if (Number.isNaN(wanted)) return;
    event.preventDefault();
    this._choose(Math.min(Math.max(wanted, 0), last));
    this._buttons[this._shown].focus();
  }

  _look(view) {
    if (!view) return;
    this._view = view;
    for (const button of this._parts.views.children)
      button.setAttribute("aria-pressed", String(button.dataset.view === view));
    this.show(this._shown);
  }

  /** Thumbnails get their pictures once they are to be seen. */
  _watchThumbs() {
    this._observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        this._observer.unobserve(target);
        this._draw(target.querySelector(".thumb"), this._frames[this._buttons.indexOf(target)], "kept");
      }
    });
    for (const button of this._buttons) this._observer.observe(button);
  }

  /** The grid of patches at once, the service's picture of them over the frame when it comes. */
  async _draw(place, frame, view) {
    place.replaceChildren(maskOf(frame, view));
    if (!frame.overlay) return;
    const path = view === "scores" ? `${frame.overlay}${frame.overlay.includes("?") ? "&" : "?"}view=scores` : frame.overlay;
    const drawing = (place.drawing = Symbol(path));
    const address = await this._pictures.get(path);
    if (address && place.drawing === drawing) place.replaceChildren(element("img", { src: address, alt: "", draggable: "false" }));
  }
}

/** Pictures by path, each fetched once, few at a time. */
class Pictures {
  constructor() {
    this._stop = new AbortController();
    this._found = new Map();
    this._running = 0;
    this._waiting = [];
  }

  /** The picture's address here, or null where it cannot be had: the grid of patches stays. */
  get(path) {
    if (!this._found.has(path)) this._found.set(path, this._load(path));
    return this._found.get(path);
  }

  async close() {
    this._stop.abort();
    for (const address of await Promise.all(this._found.values())) if (address) URL.revokeObjectURL(address);
  }

  async _load(path) {
    if (this._running === AT_A_TIME) await new Promise((wake) => this._waiting.push(wake));
    else this._running += 1;
    try {
      return await api.picture(path, this._stop.signal);
    } catch {
      return null;
    } finally {
      const next = this._waiting.shift();
      if (next) next();
      else this._running -= 1;
    }
  }
}

function caption(frame) {
  const parts = [`${clock(frame.pts_s)}, frame ${frame.index}`, `kept ${frame.kept} of ${frame.of} (${percent(frame.kept, frame.of)})`];
  if (frame.threshold !== null) parts.push(`threshold ${round(frame.threshold)}`);
  return parts.join(" · ");
}

/** The frame of which most was kept. */
const fullest = (frames) => frames.reduce((best, frame, number) => (frame.kept > frames[best].kept ? number : best), 0);
