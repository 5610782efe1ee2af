// The view library under one name, so that every module writes the same first line.
import { h, render, Fragment, options } from "../vendor/preact/preact.mjs";
import htm from "../vendor/htm/htm.module.js";

export { useState, useEffect, useLayoutEffect, useRef, useMemo, useCallback } from "../vendor/preact/hooks.mjs";
export { render, Fragment };
export const html = htm.bind(h);

let draw = () => {};
options.debounceRendering = (process) => {
  draw = process; // it does nothing where all is drawn
  queueMicrotask(process);
};

/** Draws at once what has changed, for one who cannot wait until the running event is over. */
export const drawChanged = () => draw();
