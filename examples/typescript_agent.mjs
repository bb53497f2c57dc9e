// A TypeScript agent on the npm SDK 4.0.0 with our adapter. Answers the first message it gets and prints it.
// Run it after `make npm`; MESH_RELAY_URL and MESH_REGISTRY_URL say where relay and registry are.

import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";

import { createMeshClient } from "../interop/agt-adapter/index.mjs";

// Node 20 has no WebSocket of its own; the package is among interop's.
const { WebSocket } = createRequire(new URL("../interop/package.json", import.meta.url))("ws");

const { client, did } = createMeshClient({
  privateKey: randomBytes(32), // keep it to keep the DID
  displayName: "typescript",
  relayUrl: process.env.MESH_RELAY_URL ?? "ws://127.0.0.1:8083",
  registryUrl: process.env.MESH_REGISTRY_URL ?? "http://127.0.0.1:8082",
  wsFactory: (url) => new WebSocket(url),
});

client.onMessage(async (from, payload) => {
  console.log(`${from} says ${JSON.stringify(payload)}`);
  await client.send(from, `hello from TypeScript`);
  await client.disconnect();
});

await client.connect();
console.log(`listening as ${did}`);
