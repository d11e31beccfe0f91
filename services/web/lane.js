/** A conversation with one model and strategy: its session, its turns, the newest first. */

import * as api from "./api.js";
import { stamp } from "./dom.js";
import { Turn } from "./turn.js";

/** One side of the page. Fires `choose` when a frame of an answer is picked. */
export class Lane extends EventTarget {
  /**
   * @param {string} title
   * @param {import("./settings.js").Settings} settings
   */
  constructor(title, settings) {
    super();
    const { root, parts } = stamp("lane-template");
    this.root = root;
    this.settings = settings;
    this._parts = parts;
    this._turns = [];
    this._session = null;
    this._work = null;
    parts.title.textContent = title;
    parts.turns.setAttribute("aria-label", title);
  }

  /** Whether anything was asked. */
  get begun() {
    return this._turns.length > 0;
  }

  /** Whether a conversation goes on, which keeps its settings and its frames. */
  get bound() {
    return this._session !== null;
  }

  /**
   * Ask, and show the answer as it comes; problems are shown too.
   * @param {string} videoId
   * @param {string} question
   * @param {object} choice the range of the video, and whether evidence is wanted; the range counts at the first question
   */
  async ask(videoId, question, { evidence, ...range }) {
    const work = (this._work = new AbortController());
    const turn = this._begin(question);
    const query = { question, evidence, ...this.settings.query(), ...(this._session ? { session_id: this._session } : range) };
    try {
      for await (const event of api.ask(videoId, query, work.signal)) {
        turn.take(event);
        if (event.type === "answer") this._answered(turn, event);
      }
    } catch (error) {
      turn.fail(error);
    } finally {
      this._work = null;
    }
  }

  /** Stop what is going on; closing the connection stops the service. */
  cancel() {
    this._work?.abort();
  }

  /** Begin a new conversation. */
  reset() {
    this.cancel();
    for (const turn of this._turns) turn.close();
    this._turns = [];
    this._session = null;
    this._parts.turns.replaceChildren();
    this._parts.how.textContent = "";
    this.settings.lock(false);
  }

  /** The frame that the newest answer shows, if it has any. */
  get shown() {
    return this._turns.at(-1)?.timeline?.shown;
  }

  /**
   * Show the same frame as another lane.
   * @param {object} [frame]
   */
  follow(frame) {
    if (frame) this._turns.at(-1)?.timeline?.follow(frame);
  }

  _begin(question) {
    this._turns.at(-1)?.fold();
    const turn = new Turn(question);
    this._turns.push(turn);
    const { model, strategy } = this.settings.query();
    this._parts.how.textContent = `${strategy} · ${model}`;
    this._parts.turns.prepend(turn.root);
    return turn;
  }

  _answered(turn, answer) {
    this._session = answer.session_id;
    this.settings.lock(true);
    turn.timeline?.addEventListener("choose", ({ detail }) => this.dispatchEvent(new CustomEvent("choose", { detail })));
  }
}
