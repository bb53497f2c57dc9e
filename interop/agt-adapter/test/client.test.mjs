// The whole client on recorded transcripts: connect frames, registration, sessions, each byte as agt-5 writes it.
// The relay is a socket held by the test; the live relay and registry are the interop matrix's part.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { createMeshClient, didOf } from "../index.mjs";
import { Wire } from "./wire.mjs";
import { bytes, refused, replaying, tests } from "./vectors.mjs";

function harness({ ed25519Private }, { exchanges = [], ...options } = {}) {
  const wires = [];
  const requests = [];
  const agent = createMeshClient({
    privateKey: bytes(ed25519Private),
    relayUrl: "ws://relay.test",
    ...options,
    registryClientOptions: {
      retryBaseDelayMs: 0,
      fetchImpl: async (url, { method, headers, body }) => {
        requests.push({ method, url, headers: Object.entries(headers), body: body ?? null });
        const { networkError, status, body: text } = exchanges[requests.length - 1].response;
        if (networkError) throw new TypeError("fetch failed");
        return new Response(status === 204 ? null : text, { status });
      },
    },
    wsFactory: (url) => {
      wires.push(new Wire(url));
      return wires.at(-1);
    },
  });
  return { ...agent, wires, requests, wire: () => wires.at(-1) };
}

const asRecorded = (exchanges) => exchanges.map(({ request }) => request);

describe("frames", () => {
  for (const vector of tests("frames_agt5.json", "ClientFrame")) {
    // The adapter always uses the DID of the key, so a recorded foreign DID has no counterpart.
    if (vector.did !== didOf(bytes(vector.ed25519Public))) continue;
    test(`${vector.frameType} ${vector.tcId}: ${vector.comment}`, async () => {
      const { client, wire } = harness(vector);
      await replaying({ now: vector.now }, async () => {
        await client.connect();
        client.sendHeartbeat();
        await client.disconnect();
      });
      assert.ok(wire().sent.includes(vector.frame), wire().sent.join("\n"));
    });
  }
});

describe("registration", () => {
  const isProof = ({ flags }) => flags.includes("PopRegister");
  const hasDerivedDid = ({ input }) => input.publicKey.length === 64;
  const vectors = tests("registry_http_agt5.json", "Register").filter((vector) => isProof(vector) && hasDerivedDid(vector));

  for (const vector of vectors) {
    test(`${vector.tcId}: ${vector.comment}`, async () => {
      const { input, exchanges } = vector;
      const { client, requests } = harness(input, { registryUrl: vector.baseUrl, exchanges });
      const { capabilities, metadata } = input;
      const register = () =>
        replaying({ now: vector.now }, () =>
          client.getRegistry().register(input.did, new Uint8Array(32), capabilities, metadata),
        );
      if (vector.result === "valid") await register();
      else await assert.rejects(register, refused);
      const bodies = (list) => list.map(({ method, url, body }) => ({ method, url, body }));
      assert.deepEqual(bodies(requests), bodies(asRecorded(exchanges)));
      if (vector.auth) assert.deepEqual(requests, asRecorded(exchanges));
    });
  }

  for (const vector of tests("registry_http_agt5.json", "MeshClientRegistration")) {
    if (vector.flags.includes("AgentDidOption")) continue;
    const [connect] = vector.steps;
    test(`on connect ${vector.tcId}: ${vector.comment}`, async () => {
      const exchanges = connect.exchanges ?? [];
      const options = { ...vector.client.options, registryUrl: "http://registry.test:8082", exchanges };
      const { client, requests, wire } = harness(vector.client, options);
      const attempt = () => replaying(connect, () => client.connect());
      if (connect.result === "valid") await attempt();
      else await assert.rejects(attempt, refused);
      assert.deepEqual(requests, asRecorded(exchanges));
      assert.deepEqual(
        wire().sent,
        connect.writes.map(({ frame }) => frame),
      );
    });
  }

  test("a registry that serves another agent's keys is refused", async () => {
    const [vector] = tests("registry_http_agt5.json", "FetchPrekeys").filter(({ result }) => result === "valid");
    const agent = { ed25519Private: "07".repeat(32) };
    const { client } = harness(agent, { registryUrl: vector.baseUrl, exchanges: vector.exchanges });
    await assert.rejects(client.getRegistry().fetchPrekeys("did:mesh:" + "0".repeat(32)), /do not belong to that DID/);
  });
});

describe("sessions", () => {
  for (const vector of tests("frames_agt5.json", "SessionTranscript")) {
    test(`${vector.tcId}: ${vector.comment}`, () => replayTranscript(vector));
  }
});

async function replayTranscript(vector) {
  const agents = {};
  for (const [name, keys] of Object.entries(vector.clients)) {
    const agent = harness(keys, { ...keys.options, autoReconnect: false });
    agent.delivered = [];
    agent.client.onMessage((from, payload) => agent.delivered.push({ from, payload }));
    if (keys.knockPolicy) agent.client.onKnock(async () => keys.knockPolicy === "accept");
    agents[name] = agent;
    await provideKeys(agent, keys);
  }
  for (const step of vector.steps) await replayStep(agents[step.client], step);
}

/** The recorded private prekeys, through the key manager the client was built with. */
async function provideKeys({ keyManager }, keys) {
  const oneTimeKeys = keys.oneTimePreKeys ?? [];
  const last = Math.max(-1, ...oneTimeKeys.map(({ id }) => id));
  const random = Array.from({ length: last + 1 }, (_, id) => oneTimeKeys.find((key) => key.id === id)?.private);
  if (!keys.signedPreKeyPrivate) return;
  await replaying({ random: [keys.signedPreKeyPrivate, ...random.map((key) => key ?? "11".repeat(32))] }, () => {
    keyManager.generateSignedPreKey();
    keyManager.generateOneTimePreKeys(last + 1);
  });
}

async function replayStep(agent, step) {
  const { client } = agent;
  const operations = {
    connect: () => client.connect(),
    reconnect: () => client.reconnect(),
    disconnect: () => client.disconnect(),
    establishSession: () => client.establishSession(step.peer, bundleOf(step.bundle)),
    send: () => client.send(step.peer, step.payload.json === null ? undefined : JSON.parse(step.payload.json)),
    receive: () => agent.wire().onmessage({ data: step.frame }),
    heartbeat: () => client.sendHeartbeat(),
    closeSession: () => client.closeSession(step.peer),
  };
  const attempt = () =>
    replaying(step, async () => {
      await operations[step.op]();
      await new Promise(setImmediate);
    });
  if (step.result === "invalid" && step.op !== "receive") await assert.rejects(attempt, refused);
  else await attempt();
  const writes = agent.wires.flatMap((wire) => wire.take());
  assert.deepEqual(writes.filter(isRecordedBySdk(step)), (step.writes ?? []).map(({ frame }) => frame));
  assert.deepEqual(
    agent.delivered.splice(0).map(({ from, payload }) => ({ from, payloadJson: JSON.stringify(payload) })),
    (step.delivered ?? []).map(({ from, payloadJson }) => ({ from, payloadJson })),
  );
}

/** The adapter acknowledges knocks and their answers, which the SDK never does. */
function isRecordedBySdk(step) {
  const received = step.op === "receive" ? JSON.parse(step.frame) : {};
  return (text) => !(String(received.type).startsWith("knock") && JSON.parse(text).type === "ack");
}

function bundleOf(bundle) {
  const entries = Object.entries(bundle ?? {}).filter(([, value]) => value !== null);
  return Object.fromEntries(entries.map(([key, value]) => [key, typeof value === "string" ? bytes(value) : value]));
}
