/** What went wrong, in plain words. */

import { stamp } from "./dom.js";

const BY_CODE = {
  session_busy: "This conversation is still busy",
  forbidden_source: "The service may not fetch that address",
  quota_exceeded: "Your quota is used up for now",
};
const BY_STATUS = {
  0: "The service cannot be reached",
  400: "The service did not understand the request",
  401: "The service wants a valid API key",
  403: "The service takes this from its own page alone",
  404: "That is not there any more",
  409: "This conversation is still busy",
  413: "That is too large",
  415: "That is not a video the service can read",
  422: "The service cannot use that",
  429: "Too many requests for now",
  503: "The service is busy or starting",
  504: "That took too long",
};

/** An error that people can read: of the service, of the network on the way to it, or of its answer. */
export class Problem extends Error {
  /**
   * @param {{status?: number, message: string, code?: string, requestId?: string, retryAfter?: number}} facts
   *   status: 0 where no answer came
   */
  constructor({ status = 0, message, code = "", requestId = "", retryAfter = 0 }) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }

  /** The problem in a few words. */
  get headline() {
    return BY_CODE[this.code] ?? BY_STATUS[this.status] ?? (this.status < 500 ? "That did not work" : "The service failed");
  }

  /** Code, request id and when to try again. */
  get facts() {
    const facts = [];
    if (this.code) facts.push(`code ${this.code}`);
    if (this.status) facts.push(`HTTP ${this.status}`);
    if (this.requestId) facts.push(`request ${this.requestId}`);
    if (this.retryAfter) facts.push(`try again in ${this.retryAfter} s`);
    return facts.join(" · ");
  }

  /**
   * The problem that a failed response tells of, whoever wrote it: a proxy's page has no error object.
   * @param {{status: number, text: string, header: (name: string) => string|null}} response
   */
  static of({ status, text, header }) {
    const error = errorIn(text);
    return new Problem({
      status,
      message: error.message ?? `The answer has status ${status} and does not say why.`,
      code: error.code,
      requestId: error.request_id ?? header("x-request-id") ?? "",
      retryAfter: Number(header("retry-after")) || 0,
    });
  }

  /**
   * The problem of a request that got no answer; an abort stays what it is.
   * @param {Error} error
   */
  static unreachable(error) {
    if (error.name === "AbortError" || error instanceof Problem) return error;
    const message = navigator.onLine ? "No answer came. Is it running, and is the address right?" : "You are offline.";
    return new Problem({ message, code: "unreachable" });
  }
}

/**
 * A box that shows a problem.
 * @param {Problem} problem
 */
export function problemBox(problem) {
  const { root, parts } = stamp("problem-template");
  parts.headline.textContent = problem.headline;
  parts.message.textContent = problem.message;
  parts.facts.textContent = problem.facts ?? "";
  return root;
}

function errorIn(text) {
  try {
    return JSON.parse(text).error ?? {};
  } catch {
    return {};
  }
}
