// A TypeScript peer on stdio: the real SDK 4.0.0, driven by one JSON object per line. README.md holds the protocol.

import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";

import WebSocket from "ws";

import { createMeshClient } from "./agt-adapter/index.mjs";

const require = createRequire(import.meta.url);
const { MeshClient, X3DHKeyManager } = require("@microsoft/agent-governance-sdk");
const { ed25519 } = require("@noble/curves/ed25519.js");
const { version } = require("@microsoft/agent-governance-sdk/package.json");

/** Short, so that a test of reconnection takes as long as the reconnection. */
const RECONNECT_MS = 50;

class Peer {
  #client;
  #did;
  #socket;

  /** Builds the client; `connect` brings it online and, as the SDK does, registers it on the first time. */
  start({ name, did, relay, registry, seed, adapter = false, knock = "accept", plaintextPeers = [], oneTimePrekeyCount }) {
    const privateKey = seed ? Buffer.from(seed, "hex") : randomBytes(32);
    const options = {
      relayUrl: relay,
      registryUrl: registry,
      displayName: name,
      plaintextPeers,
      oneTimePrekeyCount,
      reconnectBaseDelayMs: RECONNECT_MS,
      reconnectMaxDelayMs: 10 * RECONNECT_MS,
      wsFactory: (url) => (this.#socket = new WebSocket(url)),
    };
    if (adapter) {
      const onRefused = (detail) => say({ event: "refused", detail });
      ({ client: this.#client, did: this.#did } = createMeshClient({ ...options, privateKey, onRefused }));
    } else {
      this.#did = did ?? `did:agentmesh:${name}`;
      const keyManager = new X3DHKeyManager(privateKey, ed25519.getPublicKey(privateKey));
      this.#client = new MeshClient({ ...options, agentDid: this.#did, keyManager });
    }
    this.#observe(knock);
    return { did: this.#did };
  }

  async connect() {
    await this.#client.connect();
    say({ event: "connected", did: this.#did });
    return { did: this.#did };
  }

  async reconnect() {
    await this.#client.reconnect();
    say({ event: "connected", did: this.#did });
  }

  /** Registers again and replaces the prekeys, as the SDK does by itself on the first connect. */
  async register() {
    await this.#client.registerSelf();
  }

  async discover({ name, limit = 50 }) {
    const found = await this.#client.discover(name, limit);
    return { dids: found.map(({ did }) => did) };
  }

  /** The SDK sends nothing before somebody has called this: on the initiator, once per session. */
  async establish({ peer }) {
    await this.#client.establishSessionWithPeer(peer);
  }

  close({ peer }) {
    return { closed: this.#client.closeSession(peer) };
  }

  async send({ peer, payload, bytes }) {
    await this.#client.send(peer, bytes === undefined ? payload : asJson(Buffer.from(bytes, "base64")));
  }

  /** What the SDK makes of a Uint8Array: JSON.stringify gives an object with the indices as keys. */
  async sendTypedArray({ peer, bytes }) {
    await this.#client.send(peer, new Uint8Array(Buffer.from(bytes, "base64")));
  }

  async burst({ peer, count, label = "" }) {
    for (let n = 0; n < count; n++) await this.#client.send(peer, { label, n });
  }

  heartbeat() {
    this.#client.sendHeartbeat();
  }

  async disconnect() {
    await this.#client.disconnect();
  }

  /** The cable is pulled: no close frame. */
  drop() {
    this.#socket.terminate();
  }

  stats() {
    return { did: this.#did, connected: this.#client.isConnected, sdk: version, node: process.version };
  }

  session({ peer }) {
    const session = this.#client.getSession(peer);
    return { exists: session !== undefined, messages: session?.messageCount ?? 0 };
  }

  #observe(knock) {
    this.#client.onKnock(async (from, intent) => {
      say({ event: "knock", from, intent });
      return knock === "accept";
    });
    this.#client.onMessage((from, payload, plaintext) => say({ event: "message", from, ...asValue(payload), plaintext }));
    this.#client.onE2EVerified((from) => say({ event: "verified", from }));
    this.#client.onError((kind, from, detail) => say({ event: "error", kind, from, detail: String(detail) }));
    this.#client.onDisconnect((reason, code) => {
      say({ event: "disconnected", reason, code: code ?? null });
      if (reason !== "client") this.#announceReturn();
    });
  }

  /** The SDK has no event for an automatic reconnect. */
  #announceReturn() {
    const timer = setInterval(() => {
      if (!this.#client.isConnected) return;
      clearInterval(timer);
      say({ event: "connected", did: this.#did });
    }, RECONNECT_MS / 5);
    timer.unref();
  }
}

/** Bytes in JSON, by the convention of WIRE: text when they are UTF-8, else {"raw_b64"}. */
function asJson(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return { raw_b64: bytes.toString("base64") };
  }
}

function asValue(payload) {
  const raw = payload?.raw_b64;
  return typeof raw === "string" && Object.keys(payload).length === 1 ? { bytes: raw } : { payload };
}

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const COMMANDS = new Set(Object.getOwnPropertyNames(Peer.prototype).filter((name) => name !== "constructor"));

/** Lines end with a line feed and nothing else: node:readline also splits at U+2028, which is valid inside JSON. */
async function* lines(stream) {
  let rest = "";
  for await (const chunk of stream.setEncoding("utf8")) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

async function main() {
  const peer = new Peer();
  say({ event: "ready", kind: "sdk", sdk: version, node: process.version });
  for await (const line of lines(process.stdin)) {
    const { cmd, id, ...args } = JSON.parse(line);
    if (cmd === "quit") break;
    try {
      if (!COMMANDS.has(cmd)) throw new Error(`unknown command ${cmd}`);
      say({ event: "done", id, ...(await peer[cmd](args)) });
    } catch (error) {
      say({ event: "failed", id, error: String(error?.message ?? error), status: error?.status ?? null });
    }
  }
  await peer.disconnect().catch(() => {});
  process.exit(0);
}

await main();
