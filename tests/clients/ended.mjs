// Watches an answer that has ended, from its last event on, with @microsoft/fetch-event-source: the answer is 204.
//
// node ended.mjs URL LAST_ID default|told: by itself, or told that 204 is the end. Prints how often it asked, at most three
// times, and whether it came to an end of its own.

import source from "@microsoft/fetch-event-source";

const [url, last, how] = process.argv.slice(2);
globalThis.window = globalThis; // it looks whether its page is shown
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const leaving = new AbortController();
let asked = 0;
const statuses = [];
const options = {
  headers: { "Last-Event-ID": last },
  openWhenHidden: true,
  signal: leaving.signal,
  async fetch(...given) {
    asked += 1;
    if (asked === 3) leaving.abort();
    const response = await fetch(...given);
    statuses.push(response.status);
    return response;
  },
};
class Ended extends Error {}
if (how === "told") {
  options.onopen = async (response) => {
    if (response.status === 204) throw new Ended();
  };
  options.onerror = (error) => {
    if (error instanceof Ended) throw error;
  };
}
let ended = false;
try {
  await source.fetchEventSource(url, options);
} catch (error) {
  ended = error instanceof Ended;
}
console.log(JSON.stringify({ asked, statuses, ended }));
