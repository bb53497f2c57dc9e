// The registry client of agt-5: registers with proof of possession, signs every request, believes no foreign key.
//
// The SDK does not export its RegistryClient, but hands one out (`new MeshClient(...).getRegistry()`) that takes a
// `fetchImpl` and an `authSigner`. This client is that one with the registration body completed on its way out.

import { createRequire } from "node:module";

import { bundleBelongsTo, commitsToKey } from "./identity.mjs";

const { MeshClient } = createRequire(import.meta.url)("@microsoft/agent-governance-sdk");

const base64url = (bytes) => Buffer.from(bytes).toString("base64url");

export class Agt5RegistryClient {
  #sdk;
  #onBundle;

  /**
   * @param baseUrl without a trailing `/v1`
   * @param signer whose requests these are
   * @param keyManager handed to the SDK, which asks for one
   * @param onBundle told (did, bundle) for every bundle fetched and found genuine
   * @param options the SDK's registryClientOptions: fetchImpl, timeoutMs, maxRetries, retryBaseDelayMs
   */
  constructor({ baseUrl, signer, keyManager, onBundle = () => {}, options = {} }) {
    const fetchImpl = options.fetchImpl ?? globalThis.fetch.bind(globalThis);
    this.#onBundle = onBundle;
    this.#sdk = new MeshClient({
      relayUrl: "",
      registryUrl: baseUrl,
      agentDid: signer.did,
      keyManager,
      autoRegister: false,
      registryClientOptions: {
        ...options,
        authSigner: { did: signer.did, sign: (message) => signer.sign(message) },
        fetchImpl: (url, request) => fetchImpl(url, proved(signer, url, request)),
      },
    }).getRegistry();
  }

  register(did, identityKey, capabilities, metadata) {
    return this.#sdk.register(did, identityKey, capabilities, metadata);
  }

  getAgent(did) {
    return this.#sdk.getAgent(did);
  }

  deleteAgent(did) {
    return this.#sdk.deleteAgent(did);
  }

  uploadPrekeys(did, identityKey, identityKeyEd, signedPreKey, oneTimePreKeys) {
    return this.#sdk.uploadPrekeys(did, identityKey, identityKeyEd, signedPreKey, oneTimePreKeys);
  }

  /** A registry that answers with somebody else's keys is an error, not a peer. */
  async fetchPrekeys(did) {
    const bundle = await this.#sdk.fetchPrekeys(did);
    if (bundle === null) return null;
    if (commitsToKey(did) && !bundleBelongsTo(did, bundle)) {
      throw new Error(`the registry's keys for ${did} do not belong to that DID`);
    }
    this.#onBundle(did, bundle);
    return bundle;
  }

  discover(capability, limit) {
    return this.#sdk.discover(capability, limit);
  }
}

/** Replaces the body of a registration by the one that proves possession of the Ed25519 key. */
function proved(signer, url, request) {
  if (request.method !== "POST" || !url.endsWith("/v1/agents")) return request;
  const { capabilities, metadata } = JSON.parse(request.body);
  const publicKey = base64url(signer.publicKey);
  const timestamp = new Date().toISOString();
  const proof = base64url(signer.sign(publicKey + timestamp));
  const body = { public_key: publicKey, proof, proof_timestamp: timestamp, capabilities, metadata };
  return { ...request, body: JSON.stringify(body) };
}
