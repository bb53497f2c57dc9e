// The TypeScript SDK's SecureChannel. Speaks the lines of bench/worker.py.

import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../interop/package.json", import.meta.url));
const { SecureChannel, X3DHKeyManager } = require("@microsoft/agent-governance-sdk");
const { ed25519 } = require("@noble/curves/ed25519.js");

function manager() {
  const secret = randomBytes(32);
  const made = new X3DHKeyManager(secret, ed25519.getPublicKey(secret));
  made.generateSignedPreKey();
  return made;
}

function met(initiator, responder) {
  const [{ keyId }] = responder.generateOneTimePreKeys(1);
  const [alice, establishment] = SecureChannel.createSender(initiator, responder.getPublicBundle(keyId));
  const bob = SecureChannel.createReceiver(responder, establishment);
  bob.receive(alice.send(new Uint8Array(5)));
  return [alice, bob];
}

const tasks = {
  seal({ payload }) {
    const [alice, bob] = met(manager(), manager());
    const plaintext = new Uint8Array(randomBytes(payload));
    return () => bob.receive(alice.send(plaintext));
  },
  turn({ payload }) {
    const [alice, bob] = met(manager(), manager());
    const plaintext = new Uint8Array(randomBytes(payload));
    return () => {
      alice.receive(bob.send(plaintext));
      bob.receive(alice.send(plaintext));
    };
  },
  meet() {
    const initiator = manager();
    const responder = manager();
    return () => met(initiator, responder);
  },
};

function repeat(operation, times) {
  const began = process.cpuUsage();
  for (let n = 0; n < times; n++) operation();
  const { user, system } = process.cpuUsage(began);
  return (user + system) / 1e6;
}

function rate(operation, seconds) {
  let times = 1;
  let spent;
  while ((spent = repeat(operation, times)) < seconds / 10) times *= 2;
  times = Math.max(1, Math.floor((times * seconds) / spent));
  return times / repeat(operation, times);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { task, seconds, ...parameters } = JSON.parse(line);
  console.log(JSON.stringify({ rate: rate(tasks[task](parameters), seconds) }));
}
