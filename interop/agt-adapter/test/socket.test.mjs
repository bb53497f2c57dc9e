// What the SDK must not get to see, and what it forgets to say.

import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";

import { Signer } from "../identity.mjs";
import { createMeshClient } from "../index.mjs";
import { Wire } from "./wire.mjs";

const base64 = (array) => Buffer.from(array).toString("base64");

async function agent(seed, options = {}) {
  const wires = [];
  const refusals = [];
  const disconnects = [];
  const messages = [];
  const errors = [];
  const created = createMeshClient({
    privateKey: new Uint8Array(32).fill(seed),
    relayUrl: "ws://relay.test",
    autoReconnect: false,
    onRefused: (reason) => refusals.push(reason),
    ...options,
    wsFactory: (url) => {
      wires.push(new Wire(url));
      return wires.at(-1);
    },
  });
  created.client.onMessage((from, payload) => messages.push({ from, payload }));
  created.client.onError((kind) => errors.push(kind));
  created.client.onDisconnect((reason, code) => disconnects.push({ reason, code }));
  created.keyManager.generateSignedPreKey();
  await created.client.connect();
  const wire = () => wires.at(-1);
  wire().take();
  return { ...created, wires, wire, refusals, disconnects, messages, errors };
}

const settled = () => new Promise(setImmediate);

/** Everything the one agent has written is delivered to the other. */
async function carry(from, to) {
  const texts = from.wire().take();
  for (const data of texts) to.wire().onmessage({ data });
  await settled();
  return texts.map((text) => JSON.parse(text));
}

async function introduced(options) {
  const alice = await agent(1);
  const bob = await agent(2, options);
  await alice.client.establishSession(bob.did, bob.keyManager.getPublicBundle());
  return { alice, bob };
}

describe("inward", () => {
  test("a second delivery is acknowledged and leaves the session alone", async () => {
    const { alice, bob } = await introduced();
    await alice.client.send(bob.did, "once");
    const frames = await carry(alice, bob);
    bob.wire().take();
    for (const frame of frames) bob.wire().onmessage({ data: JSON.stringify(frame) });
    await settled();
    assert.deepEqual(
      bob.wire().take().map((text) => JSON.parse(text)),
      frames.map(({ id }) => ({ v: 1, type: "ack", id })),
    );
    await alice.client.send(bob.did, "twice");
    await carry(alice, bob);
    assert.deepEqual(bob.messages.map(({ payload }) => payload), ["once", "twice"]);
    assert.deepEqual(bob.errors, []);
  });

  test("a second delivery is recognised on the next connection, too", async () => {
    const { alice, bob } = await introduced();
    await alice.client.send(bob.did, "once");
    const frames = await carry(alice, bob);
    await bob.client.reconnect();
    bob.wire().take();
    for (const frame of frames) bob.wire().onmessage({ data: JSON.stringify(frame) });
    await settled();
    assert.equal(bob.messages.length, 1);
    assert.equal(bob.wire().take().length, 2);
  });

  test("a frame that has cost one session does not cost the next", async () => {
    const { alice, bob } = await introduced();
    await alice.client.send(bob.did, "once");
    await carry(alice, bob);
    await alice.client.send(bob.did, "spoilt");
    const spoilt = JSON.parse(alice.wire().take()[0]);
    spoilt.ciphertext = base64(new Uint8Array(64));
    const deliver = async (frame) => {
      bob.wire().onmessage({ data: JSON.stringify(frame) });
      await settled();
    };
    await deliver(spoilt);
    assert.deepEqual(bob.errors, ["session_desync"]);
    alice.client.closeSession(bob.did);
    await alice.client.establishSession(bob.did, bob.keyManager.getPublicBundle());
    await carry(alice, bob);
    await bob.client.reconnect();
    await deliver(spoilt);
    await alice.client.send(bob.did, "anew");
    await carry(alice, bob);
    assert.deepEqual(bob.messages.map(({ payload }) => payload), ["once", "anew"]);
    assert.deepEqual(bob.errors, ["session_desync"]);
  });

  test("the text null does not end the process", async () => {
    const bob = await agent(2);
    for (const data of ["null", "[1]", "7", "{"]) bob.wire().onmessage({ data });
    await settled();
    assert.equal(bob.refusals.length, 4);
  });

  test("plaintext is taken from listed peers only", async () => {
    const bob = await agent(2, { plaintextPeers: ["did:agentmesh:controller"] });
    const frame = { v: 1, type: "message", plaintext: true, ciphertext: btoa('"hello"') };
    bob.wire().onmessage({ data: JSON.stringify({ ...frame, from: "did:agentmesh:controller", id: "1" }) });
    bob.wire().onmessage({ data: JSON.stringify({ ...frame, from: "did:agentmesh:stranger", id: "2" }) });
    await settled();
    assert.deepEqual(bob.messages, [{ from: "did:agentmesh:controller", payload: "hello" }]);
    assert.equal(bob.refusals.length, 1);
  });

  test("a knock in another agent's name is refused", async () => {
    const [bob, mallory] = [await agent(2), await agent(3)];
    const establishment = { ik: base64(mallory.keyManager.identityKey.publicKey), ek: base64(new Uint8Array(32).fill(9)) };
    const knock = { v: 1, type: "knock", from: new Signer(new Uint8Array(32).fill(1)).did, to: bob.did, id: "1", establishment };
    bob.wire().onmessage({ data: JSON.stringify(knock) });
    await settled();
    assert.equal(bob.refusals.length, 1);
    assert.deepEqual(bob.wire().take(), ['{"v":1,"type":"ack","id":"1"}']);
  });

  test("a rejection of a knock that was never sent closes nothing", async () => {
    const { alice, bob } = await introduced();
    alice.wire().onmessage({ data: JSON.stringify({ v: 1, type: "knock_reject", from: bob.did, id: "1", knock_id: "2" }) });
    await settled();
    assert.ok(alice.client.getSession(bob.did));
    assert.equal(alice.refusals.length, 1);
  });

  test("the members of pending_messages are handled one by one, knocks as knocks", async () => {
    const { alice, bob } = await introduced();
    await alice.client.send(bob.did, "stored");
    const messages = alice.wire().take().map((text) => JSON.parse(text));
    bob.wire().onmessage({ data: JSON.stringify({ v: 1, type: "pending_messages", messages }) });
    await settled();
    assert.deepEqual(bob.messages, [{ from: alice.did, payload: "stored" }]);
  });
});

describe("outward", () => {
  test("a knock and its answer are acknowledged", async () => {
    const { alice, bob } = await introduced();
    const [knock] = await carry(alice, bob);
    const [accept, ack] = await carry(bob, alice);
    assert.equal(accept.type, "knock_accept");
    assert.deepEqual(ack, { v: 1, type: "ack", id: knock.id });
    assert.deepEqual(alice.wire().take(), [JSON.stringify({ v: 1, type: "ack", id: accept.id })]);
  });

  test("a heartbeat is sent every 30 seconds, and none after the connection has ended", async () => {
    mock.timers.enable({ apis: ["setInterval", "Date"], now: Date.UTC(2026, 0, 2) });
    try {
      const bob = await agent(2);
      for (let i = 0; i < 2; i++) mock.timers.tick(30_000);
      const beats = bob.wire().take().map((text) => JSON.parse(text));
      assert.deepEqual(
        beats.map(({ type, from, ts }) => ({ type, from, ts })),
        ["2026-01-02T00:00:30.000Z", "2026-01-02T00:01:00.000Z"].map((ts) => ({ type: "heartbeat", from: bob.did, ts })),
      );
      bob.wire().onclose({ code: 1006 });
      mock.timers.tick(60_000);
      assert.deepEqual(bob.wire().take(), []);
    } finally {
      mock.timers.reset();
    }
  });

  test("an agent that was replaced stays away; a dropped one comes back", async () => {
    const replaced = await agent(2, { autoReconnect: true, reconnectBaseDelayMs: 0 });
    replaced.wire().onclose({ code: 4006, reason: "" });
    const dropped = await agent(3, { autoReconnect: true, reconnectBaseDelayMs: 0 });
    const back = new Promise((resolve) => {
      const poll = () => (dropped.wires.length === 2 ? resolve() : setImmediate(poll));
      poll();
    });
    dropped.wire().onclose({ code: 1006, reason: "" });
    await back;
    assert.equal(replaced.wires.length, 1);
    assert.deepEqual(replaced.disconnects, [{ reason: "client", code: 1000 }]);
    await dropped.client.disconnect();
  });

  test("the end of an old connection does not count against the new one", async () => {
    const bob = await agent(2);
    await bob.client.reconnect();
    await settled();
    assert.equal(bob.wires.length, 2);
    assert.ok(bob.client.isConnected);
  });

  test("a peer without a key-committing DID is answered with the old derivation", async () => {
    const { derivations } = await import("../keys.mjs");
    const used = [];
    const spy = mock.method(derivations, "agt-4", (dh) => {
      used.push("agt-4");
      return dh.slice(0, 32);
    });
    const [alice, bob] = [await agent(1), await agent(2)];
    await alice.client.establishSession(bob.did, bob.keyManager.getPublicBundle());
    const [knock] = alice.wire().take().map((text) => JSON.parse(text));
    bob.wire().onmessage({ data: JSON.stringify({ ...knock, from: "did:agentmesh:alice" }) });
    await settled();
    spy.mock.restore();
    assert.deepEqual(used, ["agt-4"]);
  });
});
