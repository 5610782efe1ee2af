// A value that several parts of the page look at. `useStore` draws again when it changes, at most once a frame.
import { drawChanged, useEffect, useState } from "./dom.js";

export class Store {
  constructor(value) {
    this.value = value;
    this.listeners = new Set();
  }

  set(value) {
    if (Object.is(value, this.value)) return;
    this.value = value;
    for (const listener of [...this.listeners]) listener(value);
  }

  update(change) {
    this.set(change(this.value));
  }

  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

const waitingForFrame = new Set();

/** Runs `work` once before the next paint, however often it is asked for. A hidden page has no frames, so it waits. */
export function onceAFrame(work) {
  let waiting = 0;
  const run = () => {
    later.cancel();
    work();
  };
  const later = () => {
    if (waiting) return;
    waiting = requestAnimationFrame(run);
    waitingForFrame.add(run);
  };
  later.cancel = () => {
    cancelAnimationFrame(waiting);
    waitingForFrame.delete(run);
    waiting = 0;
  };
  return later;
}

/** Draws what waits for a frame. A key does so first: else the second of two in one frame would act on the page before the
 * first, as "[ [" that goes back one tab. */
export function drawNow() {
  for (const run of [...waitingForFrame]) run();
  drawChanged();
}

export function useStore(store) {
  const [, draw] = useState(0);
  useEffect(() => {
    const later = onceAFrame(() => draw((count) => count + 1));
    const stop = store.listen(later);
    later(); // it may have changed between the first drawing and now
    return () => {
      stop();
      later.cancel();
    };
  }, [store]);
  return store.value;
}
