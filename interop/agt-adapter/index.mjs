// One call that gives an SDK 4.0.0 MeshClient which speaks agt-5.

import { createRequire } from "node:module";

import { BoundedMap } from "./bounded.mjs";
import { Signer, commitsToKey } from "./identity.mjs";
import { Agt5KeyManager } from "./keys.mjs";
import { Agt5RegistryClient } from "./registry.mjs";
import { Memory, MeshSocket } from "./socket.mjs";

const { MeshClient } = createRequire(import.meta.url)("@microsoft/agent-governance-sdk");

/** Only needed between a bundle or a knock and the key agreement that follows at once. */
const REMEMBERED_PEERS = 4096;

export { didOf } from "./identity.mjs";
export { Agt5KeyManager } from "./keys.mjs";
export { Agt5RegistryClient } from "./registry.mjs";

/**
 * A MeshClient of the SDK with proof of possession, the corrected key derivation and heartbeats.
 *
 * @param privateKey Ed25519, 32 bytes (or 64 with the public half behind it); DID and X25519 key follow from it
 * @param derivation for a DID: "agt-5", or "agt-4" for an agent on the npm release without this adapter; by default
 *   the latter for every DID that does not commit to a key
 * @param onRefused told (reason, frame) for every frame that is kept from the SDK
 * @param options whatever MeshClientOptions of the SDK has besides
 * @returns {client, did, keyManager}: the SDK's MeshClient, ready for connect(); the SDK itself names neither of the others
 */
export function createMeshClient({
  privateKey,
  derivation = (did) => (commitsToKey(did) ? "agt-5" : "agt-4"),
  onRefused,
  wsFactory = (url) => new WebSocket(url),
  registryClientOptions,
  ...options
}) {
  const signer = new Signer(privateKey);
  const derivationOf = new BoundedMap(REMEMBERED_PEERS);
  const learn = (did, identityKey) => derivationOf.set(hex(identityKey), derivation(did));
  const keyManager = new Agt5KeyManager(privateKey, signer.publicKey, {
    derivationFor: (identityKey) => derivationOf.get(hex(identityKey)) ?? "agt-5",
  });
  const memory = new Memory();
  let socket;
  const agent = {
    signer,
    isPlaintextPeer: (did) => client.isPlaintextPeer(did),
    hasSession: (did) => client.getSession(did) !== undefined,
    onKnock: learn,
    onRefused,
  };
  const client = new MeshClient({
    ...options,
    agentDid: signer.did,
    keyManager,
    wsFactory: (url) => (socket = new MeshSocket(wsFactory(url), agent, memory)),
    registryClient:
      options.registryUrl &&
      new Agt5RegistryClient({
        baseUrl: options.registryUrl,
        signer,
        keyManager,
        onBundle: (did, { identityKey }) => learn(did, identityKey),
        options: registryClientOptions,
      }),
  });
  client.onError((kind, from) => kind === "session_desync" && socket.sessionLost(from));
  return { client, did: signer.did, keyManager };
}

const hex = (bytes) => Buffer.from(bytes).toString("hex");
