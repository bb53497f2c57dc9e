// A TypeScript agent that answers tasks, on the npm SDK 4.0.0 with our adapter, for `client.request` and `mesh ask`.
// Run it after `make npm`; MESH_RELAY_URL and MESH_REGISTRY_URL say where relay and registry are.

import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";

import { createMeshClient } from "../interop/agt-adapter/index.mjs";

// Node 20 has no WebSocket of its own; the package is among interop's.
const { WebSocket } = createRequire(new URL("../interop/package.json", import.meta.url))("ws");

const { client, did } = createMeshClient({
  privateKey: randomBytes(32), // keep it to keep the DID
  displayName: "writer",
  relayUrl: process.env.MESH_RELAY_URL ?? "ws://127.0.0.1:8083",
  registryUrl: process.env.MESH_REGISTRY_URL ?? "http://127.0.0.1:8082",
  wsFactory: (url) => new WebSocket(url),
});

const now = () => new Date().toISOString();
const me = { from_agent: "writer" };

client.onMessage(async (from, task) => {
  if (task?.type !== "task_request") return; // never answer an answer
  const { request_id } = task;
  await client.send(from, { type: "task_received", request_id, ...me, accepted_at: now() });
  const content = `written in TypeScript: ${task.content}`; // here your model works
  const answer = { type: "task_response", content, ok: true, in_reply_to: request_id, artifacts: [], trace: [], ...me };
  await client.send(from, { ...answer, timestamp: now() });
  console.log(`answered ${request_id}`);
});

await client.connect();
console.log(`answering as ${did}`);
