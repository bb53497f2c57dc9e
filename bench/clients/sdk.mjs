// Two clients of the TypeScript SDK in one process; the argument and the answer are those of bench/clients/ours.py.

import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";

const require = createRequire(new URL("../../interop/package.json", import.meta.url));
const { MeshClient, X3DHKeyManager } = require("@microsoft/agent-governance-sdk");
const { ed25519 } = require("@noble/curves/ed25519.js");
const WebSocket = require("ws");

const WINDOW = 256;
const { relay, registry, messages, payload } = JSON.parse(process.argv[2]);

async function client(name) {
  const secret = randomBytes(32);
  const made = new MeshClient({
    relayUrl: `ws://${relay}`,
    registryUrl: `http://${registry}`,
    agentDid: `did:agentmesh:${name}`,
    displayName: name,
    keyManager: new X3DHKeyManager(secret, ed25519.getPublicKey(secret)),
    wsFactory: (url) => new WebSocket(url),
  });
  made.onKnock(async () => true);
  await made.connect();
  return made;
}

const bob = await client("bob");
const alice = await client("alice");
const got = [];
let news = () => {};
bob.onMessage((_, { n }) => {
  got.push(n);
  news();
});
const arrived = (count) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("nothing arrives any more")), 30_000);
    news = () => {
      if (got.length < count) return;
      clearTimeout(timer);
      resolve();
    };
    news();
  });

await alice.establishSessionWithPeer("did:agentmesh:bob");
await alice.send("did:agentmesh:bob", { n: -1 });
await arrived(1);
got.length = 0;

const text = "x".repeat(Math.max(0, payload - 20));
const began = performance.now();
const cpu = process.cpuUsage();
for (let n = 0; n < messages; n++) {
  await alice.send("did:agentmesh:bob", { n, text });
  if (n % 32 === 31) await new Promise(setImmediate); // its send never waits for the socket: let the others work
  if (n + 1 - got.length >= WINDOW) await arrived(n + 1 - WINDOW / 2);
}
await arrived(messages);
const spent = (performance.now() - began) / 1000;
const { user, system } = process.cpuUsage(cpu);
const different = new Set(got).size;
console.log(
  JSON.stringify({
    value: got.length / spent,
    us: (user + system) / messages,
    lost: messages - different,
    doubled: got.length - different,
    reordered: got.filter((n, index) => n < got[index - 1]).length,
  }),
);
process.exit(0);
