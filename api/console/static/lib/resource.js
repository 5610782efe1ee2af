// What a route answers, kept up to date: the last answer stays when the next one fails, with the time it is from.
import { useEffect, useState } from "./dom.js";
import { get } from "./api.js";
import { Channel } from "./tabs.js";

const RETRY_MS = 2000;
const told = new Map(); // path → those who ask for it here again and again

const tabs = new Channel("answers", ({ path, data }) => {
  for (const take of told.get(path) ?? []) take(data);
});

function listen(path, take) {
  if (!told.has(path)) told.set(path, new Set());
  told.get(path).add(take);
  return () => {
    told.get(path).delete(take);
    if (!told.get(path).size) told.delete(path);
  };
}

/**
 * {data, error, at_ms, loading, reload} of a GET. `every_ms`: asks again, while the page is shown and no other tab has asked the
 * same meanwhile. `path` null: asks nothing.
 * After a failure `data` is that of `at_ms`, and it is tried again unless asking again cannot help (4xx).
 */
export function useResource(path, { every_ms = 0 } = {}) {
  const [held, hold] = useState({ path, data: null, error: null, at_ms: 0, loading: !!path });
  const [asked, again] = useState(0);
  useEffect(() => {
    if (!path) return undefined;
    const aborter = new AbortController();
    let timer = 0;
    let turn = 0; // an answer that comes after a newer one is not taken
    const ask = async () => {
      if (document.hidden) return later(every_ms || RETRY_MS);
      const mine = ++turn;
      hold((now) => (now.path === path ? { ...now, loading: true } : { path, data: null, error: null, at_ms: 0, loading: true }));
      try {
        const data = await get(path, { signal: aborter.signal });
        if (mine !== turn || aborter.signal.aborted) return;
        hold({ path, data, error: null, at_ms: Date.now(), loading: false });
        if (!every_ms) return;
        tabs.tell({ path, data });
        later(every_ms);
      } catch (error) {
        if (mine !== turn || aborter.signal.aborted) return;
        hold((now) => ({ ...now, error, loading: false }));
        if (error.status === 0 || error.status >= 500 || error.status === 429) later(Math.max(RETRY_MS, every_ms));
      }
    };
    const later = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(ask, ms);
    };
    const shown = () => {
      if (document.hidden || !every_ms) return;
      clearTimeout(timer);
      ask();
    };
    const take = (data) => {
      if (document.hidden) return;
      turn += 1;
      hold({ path, data, error: null, at_ms: Date.now(), loading: false });
      later(every_ms * (1.2 + Math.random())); // the tab that asked asks before the others
    };
    const deaf = every_ms ? listen(path, take) : () => {};
    document.addEventListener("visibilitychange", shown);
    ask();
    return () => {
      deaf();
      document.removeEventListener("visibilitychange", shown);
      clearTimeout(timer);
      aborter.abort();
    };
  }, [path, every_ms, asked]);
  const now = held.path === path ? held : { data: null, error: null, at_ms: 0, loading: !!path };
  return { ...now, reload: () => again((count) => count + 1) };
}
