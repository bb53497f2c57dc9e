// Golden vectors, and the scripted randomness and clock to replay them.

import { readFileSync, readdirSync } from "node:fs";
import { webcrypto } from "node:crypto";
import { mock } from "node:test";

const VECTORS = new URL("../../../vectors/", import.meta.url);

/** All groups of a vector file, wherever below vectors/ it lies. */
export function groups(name) {
  const path = readdirSync(VECTORS, { recursive: true }).find((file) => file.split(/[\\/]/).at(-1) === name);
  if (!path) throw new Error(`no ${name} below vectors/`);
  return JSON.parse(readFileSync(new URL(path, VECTORS), "utf8")).testGroups;
}

/** The tests of one type in a file; throws when there are none, so that a renamed type cannot pass unseen. */
export function tests(name, type, { profile } = {}) {
  const found = groups(name).filter((group) => group.type === type && (!profile || group.profile === profile));
  if (found.length === 0) throw new Error(`no ${type} in ${name}`);
  return found.flatMap((group) => group.tests);
}

export const bytes = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
export const hex = (array) => Buffer.from(array).toString("hex");

/** The code under test drew something else than was recorded: never the refusal that a vector asks for. */
class ReplayMismatch extends Error {}

/** For assert.rejects: the input was refused, rather than handled with other randomness. */
export const refused = (error) => !(error instanceof ReplayMismatch);

/** Runs `body` with the recorded random values, message ids and clock; all of them must be used up. */
export async function replaying({ random = [], uuids = [], now }, body) {
  const values = random.map((entry) => bytes(entry.value ?? entry));
  const ids = [...uuids];
  const randomness = mock.method(webcrypto, "getRandomValues", (target) => {
    if (values.length === 0) throw new ReplayMismatch("more random values are drawn than were recorded");
    target.set(values.shift());
    return target;
  });
  const identifiers = mock.method(globalThis.crypto, "randomUUID", () => ids.shift());
  if (now) mock.timers.enable({ apis: ["Date"], now: new Date(now) });
  try {
    const result = await body();
    if (values.length + ids.length > 0) {
      throw new ReplayMismatch(`${values.length} random values and ${ids.length} ids were not used`);
    }
    return result;
  } finally {
    randomness.mock.restore();
    identifiers.mock.restore();
    if (now) mock.timers.reset();
  }
}
