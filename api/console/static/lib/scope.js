// Whose things are looked at: the own tenant's, or, for an admin who wants that, every tenant's.
import { Store } from "./store.js";

const KEY = "streamspool.tenants";

export const allTenants = new Store(localStorage.getItem(KEY) === "*");
// All tabs look at the same, so that one feed does for them.
addEventListener("storage", ({ key, newValue }) => key === KEY && allTenants.set(newValue === "*"));

export function setAllTenants(on) {
  localStorage.setItem(KEY, on ? "*" : "");
  allTenants.set(on);
}
