// Light, dark, or as the system has it. The choice is kept in this browser.
import { Store } from "./store.js";

const KEY = "streamspool.theme";
const ORDER = ["system", "light", "dark"];
const kept = localStorage.getItem(KEY);

export const theme = new Store(ORDER.includes(kept) ? kept : "system");

function apply(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}
apply(theme.value);

export function nextTheme() {
  const name = ORDER[(ORDER.indexOf(theme.value) + 1) % ORDER.length];
  localStorage.setItem(KEY, name);
  apply(name);
  theme.set(name);
  return name;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme.listeners.forEach((listener) => listener()));
