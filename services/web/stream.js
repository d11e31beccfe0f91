/** Server-sent events out of a response's body, however the network has cut it. */

/**
 * The JSON objects of the `data:` lines, to the end. Comments, which keep the line open, are passed over.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<object>}
 */
export async function* eventsOf(body) {
  for await (const line of linesOf(body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice("data:".length).trim();
    if (data !== "[DONE]") yield JSON.parse(data);
  }
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield line.replace(/\r$/, "");
    }
    if (rest) yield rest;
  } finally {
    await reader.cancel().catch(() => {}); // leaving early closes the connection, which stops the service's work
  }
}
