// X3DH as agt-5 derives it, on top of the SDK's key manager.
//
// npm 4.0.0 puts the 32 bytes of 0xFF into the HKDF salt; the Signal specification and agt-5 put them in front of the
// key material. The two sides then hold different secrets and no message decrypts. The SDK keeps one-time private
// keys to itself, so this manager keeps its own; everything else it needs is public there.

import { createRequire } from "node:module";

import { ed25519, x25519 } from "@noble/curves/ed25519.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { sha256 } from "@noble/hashes/sha2.js";

const { X3DHKeyManager, generateX25519KeyPair } = createRequire(import.meta.url)("@microsoft/agent-governance-sdk");

const INFO = new TextEncoder().encode("AgentMesh_X3DH_v1");
const FF = new Uint8Array(32).fill(0xff);

/** The two derivations in the field. */
export const derivations = {
  "agt-4": (dh) => hkdf(sha256, dh, FF, INFO, 32),
  "agt-5": (dh) => hkdf(sha256, concat(FF, dh), new Uint8Array(32), INFO, 32),
};

export class Agt5KeyManager extends X3DHKeyManager {
  #oneTimeKeys = new Map();
  #nextKeyId = 0;
  #derivationFor;

  /**
   * @param derivationFor asked with the peer's X25519 identity key; answers "agt-4" for a peer that is known to run
   *   the npm release without this adapter. Both derivations rest on the same Diffie-Hellman values.
   */
  constructor(ed25519Private, ed25519Public, { derivationFor = () => "agt-5" } = {}) {
    super(ed25519Private, ed25519Public);
    this.#derivationFor = derivationFor;
  }

  generateOneTimePreKeys(count) {
    return Array.from({ length: count }, () => {
      const keyPair = generateX25519KeyPair();
      const keyId = this.#nextKeyId++;
      this.#oneTimeKeys.set(keyId, keyPair);
      return { keyId, publicKey: keyPair.publicKey };
    });
  }

  /** Ids of the one-time keys nobody has used yet. */
  get oneTimePreKeyIds() {
    return [...this.#oneTimeKeys.keys()];
  }

  getPublicBundle(oneTimeKeyId) {
    const bundle = super.getPublicBundle();
    const oneTimeKey = this.#oneTimeKeys.get(oneTimeKeyId);
    if (!oneTimeKey) return bundle;
    return { ...bundle, oneTimePreKey: oneTimeKey.publicKey, oneTimePreKeyId: oneTimeKeyId };
  }

  initiate(bundle) {
    verifyBundle(bundle);
    const ephemeral = generateX25519KeyPair();
    const dh = [
      x25519.getSharedSecret(this.identityKey.privateKey, bundle.signedPreKey),
      x25519.getSharedSecret(ephemeral.privateKey, bundle.identityKey),
      x25519.getSharedSecret(ephemeral.privateKey, bundle.signedPreKey),
    ];
    if (bundle.oneTimePreKey) dh.push(x25519.getSharedSecret(ephemeral.privateKey, bundle.oneTimePreKey));
    return {
      sharedSecret: this.#derive(bundle.identityKey, dh),
      ephemeralPublicKey: ephemeral.publicKey,
      usedOneTimeKeyId: bundle.oneTimePreKey ? bundle.oneTimePreKeyId : undefined,
      associatedData: concat(this.identityKey.publicKey, bundle.identityKey),
    };
  }

  respond(peerIdentityKey, ephemeralPublicKey, usedOneTimeKeyId) {
    if (!this.signedPreKey) throw new Error("No signed pre-key available.");
    const signedPreKey = this.signedPreKey.keyPair.privateKey;
    const dh = [
      x25519.getSharedSecret(signedPreKey, peerIdentityKey),
      x25519.getSharedSecret(this.identityKey.privateKey, ephemeralPublicKey),
      x25519.getSharedSecret(signedPreKey, ephemeralPublicKey),
    ];
    if (usedOneTimeKeyId !== undefined) {
      const oneTimeKey = this.#oneTimeKeys.get(usedOneTimeKeyId);
      if (!oneTimeKey) throw new Error(`One-time pre-key ${usedOneTimeKeyId} not found or already consumed.`);
      dh.push(x25519.getSharedSecret(oneTimeKey.privateKey, ephemeralPublicKey));
      this.#oneTimeKeys.delete(usedOneTimeKeyId);
    }
    return {
      sharedSecret: this.#derive(peerIdentityKey, dh),
      ephemeralPublicKey,
      usedOneTimeKeyId,
      associatedData: concat(peerIdentityKey, this.identityKey.publicKey),
    };
  }

  #derive(peerIdentityKey, dh) {
    return derivations[this.#derivationFor(peerIdentityKey)](concat(...dh));
  }
}

function verifyBundle({ identityKey, identityKeyEd, signedPreKey, signedPreKeySignature }) {
  if (identityKeyEd?.length !== 32) throw new Error("The bundle has no Ed25519 identity key of 32 bytes.");
  if (identityKey?.length !== 32) throw new Error("Invalid identity key length.");
  if (signedPreKey?.length !== 32) throw new Error("Invalid signed pre-key length.");
  if (signedPreKeySignature?.length !== 64) throw new Error("Invalid signed pre-key signature length.");
  if (!ed25519.verify(signedPreKeySignature, signedPreKey, identityKeyEd)) {
    throw new Error("Signed pre-key signature verification FAILED.");
  }
}

function concat(...arrays) {
  const joined = new Uint8Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let offset = 0;
  for (const array of arrays) {
    joined.set(array, offset);
    offset += array.length;
  }
  return joined;
}
