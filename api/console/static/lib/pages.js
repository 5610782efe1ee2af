// A list of any length, by its pages: what is there so far, and how to get more.
import { useEffect, useRef, useState } from "./dom.js";
import { get } from "./api.js";

const RETRY_MS = 2000;

/** {rows, more, error, at_ms, loading, reload, next} of a list whose path has a query already. */
export function usePages(path) {
  const [held, hold] = useState({ rows: [], more: false, last: null, error: null, at_ms: 0, loading: true });
  const turn = useRef(0);
  const load = async (after) => {
    const mine = ++turn.current;
    hold((now) => ({ ...now, loading: true }));
    try {
      const page = await get(after ? `${path}&after=${encodeURIComponent(after)}` : path);
      if (mine !== turn.current) return;
      hold((now) => ({ rows: after ? [...now.rows, ...page.data] : page.data, more: page.has_more, last: page.last_id, error: null, at_ms: Date.now(), loading: false }));
    } catch (error) {
      if (mine === turn.current) hold((now) => ({ ...now, error, loading: false }));
    }
  };
  useEffect(() => void load(), [path]);
  useEffect(() => {
    if (!held.error || (held.error.status && held.error.status < 500)) return undefined;
    const timer = setTimeout(() => load(), RETRY_MS);
    return () => clearTimeout(timer);
  }, [held.error]);
  return { ...held, reload: () => load(), next: () => !held.loading && held.more && load(held.last) };
}
