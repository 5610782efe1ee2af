// The view library under one name, so that every module writes the same first line.
import { h, render, Fragment } from "../vendor/preact/preact.mjs";
import htm from "../vendor/htm/htm.module.js";

export { useState, useEffect, useLayoutEffect, useRef, useMemo, useCallback } from "../vendor/preact/hooks.mjs";
export { render, Fragment };
export const html = htm.bind(h);
