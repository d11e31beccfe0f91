/** The service's API, as far as this page uses it. Whatever fails is a `Problem`, or an AbortError if it was stopped. */

import { Problem } from "./problems.js";
import { eventsOf } from "./stream.js";

const KEY = "occam-api-key";

/** The API key, which lives as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Served models: id, media, defaults, whether they are calibrated. */
export const models = async () => (await json("GET", "/v1/models")).data;

/** The numbers that each strategy can be given, with their defaults; null: none. */
export const strategies = () => json("GET", "/static/strategies.json");

/**
 * A video by its address.
 * @param {string} url
 * @param {AbortSignal} signal
 */
export const addVideo = (url, signal) => json("POST", "/v1/videos", { body: { url }, signal });

/**
 * The state of a video.
 * @param {string} id
 * @param {AbortSignal} signal
 */
export const video = (id, signal) => json("GET", videoPath(id), { signal });

/**
 * Forget a video and all that was kept of it.
 * @param {string} id
 */
export const forgetVideo = (id) => send("DELETE", videoPath(id));

/**
 * Ask about a video: events `progress`, `text`, and at last `answer`; an `error` among them is thrown.
 * @param {string} id
 * @param {object} query
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<object>}
 */
export async function* ask(id, query, signal) {
  const response = await send("POST", `${videoPath(id)}/queries`, { body: { ...query, stream: true }, signal });
  let whole = false;
  try {
    for await (const event of eventsOf(response.body)) {
      if (event.type === "error") throw Problem.of({ status: 0, text: JSON.stringify(event), header: () => null });
      whole ||= event.type === "answer";
      yield event;
    }
  } catch (error) {
    throw Problem.unreachable(error);
  }
  if (!whole) throw new Problem({ message: "The connection ended before the answer did.", code: "broken_off" });
}

/**
 * A picture of the service's own, as an address for an image element. The key goes along, so it must be ours.
 * @param {string} path
 * @param {AbortSignal} signal
 */
export async function picture(path, signal) {
  const target = new URL(path, location.origin);
  if (target.origin !== location.origin) throw new Problem({ message: "The picture lies elsewhere." });
  const response = await send("GET", target.pathname + target.search, { signal });
  return URL.createObjectURL(await response.blob());
}

/**
 * Upload a video. (XMLHttpRequest, since fetch does not tell how far an upload is.)
 * @param {File} file
 * @param {(share: number) => void} progress
 * @param {AbortSignal} signal
 */
export function uploadVideo(file, progress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/videos");
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.total ? event.loaded / event.total : 0);
    request.onload = () => {
      if (request.status === 200) return resolve(JSON.parse(request.responseText));
      const header = (name) => request.getResponseHeader(name);
      return reject(Problem.of({ status: request.status, text: request.responseText, header }));
    };
    request.onerror = () => reject(Problem.unreachable(new TypeError("network")));
    request.onabort = () => reject(new DOMException("The upload was stopped.", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

const videoPath = (id) => `/v1/videos/${encodeURIComponent(id)}`;
const authorization = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

async function json(method, path, options = {}) {
  return (await send(method, path, options)).json();
}

/** A response that is no error. */
async function send(method, path, { body, signal } = {}) {
  const headers = { ...authorization(), ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw Problem.unreachable(error);
  }
  if (response.ok) return response;
  const header = (name) => response.headers.get(name);
  throw Problem.of({ status: response.status, text: await response.text(), header });
}
