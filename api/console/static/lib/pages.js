// A list of any length, by its pages: what is there so far, and how to get more.
import { useEffect, useRef, useState } from "./dom.js";
import { get } from "./api.js";

const RETRY_MS = 2000;
const nothing = (path) => ({ path, rows: [], more: false, last: null, error: null, at_ms: 0, asked_s: 0, loading: true });

/**
 * {rows, more, error, at_ms, asked_s, loading, reload, refresh, next} of a list whose path has a query already. `reload` asks for
 * the first page, `refresh` for as many as are shown, where nothing else is being asked. Rows of another path stay until there
 * are some of this one, or an error. What began after `asked_s` may not be among them.
 */
export function usePages(path) {
  const [held, hold] = useState(() => nothing(path));
  const turn = useRef(0);
  const asking = useRef(false);
  const shown = useRef(1); // pages; who asks again may not have been told yet that there are more
  const load = async ({ after = null, pages = 1, quietly = false } = {}) => {
    const mine = ++turn.current;
    const asked_s = Date.now() / 1000;
    asking.current = true;
    if (!quietly) hold((now) => ({ ...now, loading: true }));
    const rows = [];
    try {
      let page = { has_more: true, last_id: after };
      for (let left = pages; left && page.has_more; left -= 1) {
        page = await get(page.last_id ? `${path}&after=${encodeURIComponent(page.last_id)}` : path);
        if (mine !== turn.current) return;
        rows.push(...page.data);
      }
      shown.current = after ? shown.current + 1 : pages;
      hold((now) => ({ path, rows: after ? [...now.rows, ...rows] : rows, more: page.has_more, last: page.last_id, error: null, at_ms: Date.now(), asked_s, loading: false }));
    } catch (error) {
      if (mine !== turn.current) return;
      hold((now) => ({ ...(now.path === path ? now : nothing(path)), error, loading: false }));
    }
    asking.current = false;
  };
  useEffect(() => {
    shown.current = 1;
    load();
    return () => void (turn.current += 1); // what was asked is not wanted any more
  }, [path]);
  const own = held.path === path;
  const error = own ? held.error : null;
  useEffect(() => {
    if (!error || (error.status && error.status < 500 && error.status !== 429)) return undefined;
    const timer = setTimeout(() => load({ pages: shown.current }), RETRY_MS);
    return () => clearTimeout(timer);
  }, [error]);
  const next = () => own && !held.loading && held.more && load({ after: held.last });
  const refresh = () => own && !asking.current && load({ pages: shown.current, quietly: true });
  return { ...held, error, loading: held.loading || !own, more: own && held.more, reload: () => load(), refresh, next };
}
