// Who an agent is: a DID is the hash of its Ed25519 key, and its X25519 key is that key converted.
// Everything here is arithmetic on public values; sockets and HTTP live elsewhere.

import { ed25519 } from "@noble/curves/ed25519.js";
import { sha256 } from "@noble/hashes/sha2.js";

const PREFIX = "did:mesh:";
const { Fp } = ed25519.Point;

/** `did:mesh:` and the first 32 hex digits of SHA-256 over the raw Ed25519 public key. */
export function didOf(publicKey) {
  if (publicKey.length !== 32) throw new RangeError(`an Ed25519 public key has 32 bytes, not ${publicKey.length}`);
  return PREFIX + Buffer.from(sha256(publicKey)).toString("hex").slice(0, 32);
}

/** Does this DID commit to a key? Older agents chose their DIDs freely, and nothing can be checked about those. */
export const commitsToKey = (did) => did.startsWith(PREFIX);

/** Is the bundle's Ed25519 key the one the DID names, and its X25519 key the same key converted? */
export function bundleBelongsTo(did, { identityKey, identityKeyEd }) {
  if (didOf(identityKeyEd) !== did) return false;
  return equal(ed25519.utils.toMontgomery(identityKeyEd), identityKey);
}

/**
 * Does an X25519 key belong to the DID? The Ed25519 key it was made from is y = (u - 1) / (u + 1) with an unknown
 * sign bit, so one of two candidates must hash to the DID.
 */
export function identityKeyBelongsTo(did, identityKey) {
  if (identityKey.length !== 32) return false;
  const u = Fp.create(littleEndian(identityKey));
  const y = Fp.toBytes(Fp.div(Fp.sub(u, Fp.ONE), Fp.add(u, Fp.ONE)));
  const negative = Uint8Array.from(y);
  negative[31] |= 0x80;
  return didOf(y) === did || didOf(negative) === did;
}

/** Signatures by one Ed25519 private key (32 bytes, or 64 with the public half behind it). */
export class Signer {
  #seed;

  constructor(privateKey) {
    if (privateKey.length !== 32 && privateKey.length !== 64) {
      throw new RangeError(`an Ed25519 private key has 32 or 64 bytes, not ${privateKey.length}`);
    }
    this.#seed = privateKey.slice(0, 32);
    this.publicKey = ed25519.getPublicKey(this.#seed);
    this.did = didOf(this.publicKey);
  }

  sign(text) {
    return ed25519.sign(typeof text === "string" ? new TextEncoder().encode(text) : text, this.#seed);
  }
}

function littleEndian(bytes) {
  const masked = Uint8Array.from(bytes);
  masked[31] &= 0x7f; // RFC 7748: the top bit of a u-coordinate is ignored
  return BigInt("0x" + Buffer.from(masked.reverse()).toString("hex"));
}

const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
