/** The video: given by address or file, played where it is, watched until its frames are encoded. */

import * as api from "./api.js";
import { byId } from "./dom.js";
import { clock, count } from "./format.js";
import { problemBox } from "./problems.js";

const POLL_MS = 700;

/** The video that questions are about. Fires `change` when there is another one, or none. */
export class Source extends EventTarget {
  constructor() {
    super();
    /** The video's state as the API tells it, or null. */
    this.video = null;
    this._work = new AbortController();
    this._objectUrl = null;
    this._player = byId("player");
    this._listen();
  }

  /**
   * Show a moment of the video.
   * @param {number} at in seconds
   */
  seek(at) {
    if (this._player.readyState === 0) return;
    this._player.pause();
    this._player.currentTime = at;
  }

  _listen() {
    byId("source").addEventListener("submit", (event) => {
      event.preventDefault();
      const url = byId("url").value.trim();
      if (url) this._take(url, playable(url), (signal) => api.addVideo(url, signal));
    });
    byId("file").addEventListener("change", (event) => this._takeFile(event.target.files[0]));
    byId("forget").addEventListener("click", () => this._forget());
    this._player.addEventListener("error", () => {
      this._player.hidden = true;
      this._note("The browser cannot play this video. The service may read it all the same.");
    });
    const drop = byId("drop");
    for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => event.preventDefault());
    document.addEventListener("dragover", () => drop.classList.add("over"));
    for (const type of ["dragleave", "drop", "dragend"])
      document.addEventListener(type, () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => this._takeFile(event.dataTransfer.files[0]));
  }

  _takeFile(file) {
    byId("file").value = "";
    if (!file) return;
    this._take(file.name, URL.createObjectURL(file), (signal) => api.uploadVideo(file, (share) => this._uploaded(share), signal));
  }

  /** Play the video, hand it to the service by `post`, and watch it. */
  async _take(name, address, post) {
    this._leave();
    const { signal } = (this._work = new AbortController());
    this._play(name, address);
    this._say("Fetching and looking at the video …");
    try {
      this._set(await post(signal));
      await this._watch(signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      this._say("");
      byId("video-problem").replaceChildren(problemBox(error));
    } finally {
      if (!signal.aborted) byId("video-progress").hidden = true;
    }
  }

  async _watch(signal) {
    byId("video-progress").hidden = true;
    while (this.video.status === "processing") {
      this._say(`${facts(this.video)}. Encoding its frames; you may ask already.`, "busy");
      await new Promise((wake) => setTimeout(wake, POLL_MS));
      const video = await api.video(this.video.id, signal);
      if (signal.aborted) return;
      this.video = video;
    }
    if (this.video.status === "ready") return this._say(`${facts(this.video)}. Ready.`, "good");
    this._say("");
    const { code, message } = this.video.error ?? {};
    byId("video-problem").replaceChildren(problemBox({ headline: "The video cannot be read", message, facts: `code ${code}` }));
    this._set(null);
  }

  async _forget() {
    const { video } = this;
    this._leave();
    byId("loaded").hidden = true;
    byId("url").value = "";
    byId("url").focus();
    try {
      if (video) await api.forgetVideo(video.id);
      this._say("Forgotten.");
    } catch (error) {
      byId("video-problem").replaceChildren(problemBox(error));
    }
  }

  /** Stop what is done for the video that was here. */
  _leave() {
    this._work.abort();
    byId("video-problem").replaceChildren();
    byId("video-progress").hidden = true;
    this._player.removeAttribute("src");
    this._player.load();
    if (this._objectUrl) URL.revokeObjectURL(this._objectUrl);
    this._objectUrl = null;
    this._say("");
    this._set(null);
  }

  _play(name, address) {
    byId("loaded").hidden = false;
    byId("video-name").textContent = name;
    byId("video-name").title = name;
    this._player.hidden = !address;
    this._note(address ? "" : "Only the service can open this address.");
    if (address?.startsWith("blob:")) this._objectUrl = address;
    if (address) this._player.src = address;
  }

  _set(video) {
    this.video = video;
    this.dispatchEvent(new Event("change"));
  }

  _uploaded(share) {
    const bar = byId("video-progress");
    bar.hidden = false;
    bar.value = share;
    this._say(share < 1 ? `Uploading, ${Math.floor(100 * share)} % …` : "Uploaded. Looking at the video …");
  }

  _say(text, tone = "") {
    byId("video-status").textContent = text;
    byId("video-status").dataset.tone = tone;
  }

  _note(text) {
    byId("player-note").textContent = text;
    byId("player-note").hidden = !text;
  }
}

const facts = (video) => `${clock(video.duration_s)}, ${count(video.frames, "frame")}`;

/** The address if a browser can play from there, else null: a path, or a scheme that is none of a video's. */
function playable(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
