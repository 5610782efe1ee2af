// Whose things are looked at: the own tenant's, or, for an admin who wants that, every tenant's.
import { Store } from "./store.js";

const KEY = "streamspool.tenants";

export const allTenants = new Store(localStorage.getItem(KEY) === "*");

export function setAllTenants(on) {
  localStorage.setItem(KEY, on ? "*" : "");
  allTenants.set(on);
}
