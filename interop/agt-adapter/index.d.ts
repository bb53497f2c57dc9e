import type { MeshClient, MeshClientOptions, PreKeyBundle } from "@microsoft/agent-governance-sdk";
import { X3DHKeyManager } from "@microsoft/agent-governance-sdk";

export type Derivation = "agt-4" | "agt-5";

export interface AdapterOptions
  extends Omit<MeshClientOptions, "agentDid" | "keyManager" | "registryClient" | "wsFactory"> {
  /** Ed25519, 32 bytes, or 64 with the public half behind it. DID and X25519 key follow from it. */
  privateKey: Uint8Array;
  /** Needed on Node 20, which has no WebSocket: `(url) => new WebSocket(url)` with the class of the `ws` package. */
  wsFactory?: (url: string) => SocketLike;
  /** Which derivation an agent uses. Default: "agt-4" for a DID that does not start with `did:mesh:`. */
  derivation?: (did: string) => Derivation;
  /** Told why a frame was kept from the SDK. */
  onRefused?: (reason: string, frame: unknown) => void;
}

/** The part of a WebSocket that is used: the platform's and the one of the `ws` package both have it. */
export interface SocketLike {
  readonly readyState: number;
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export interface Agent {
  client: MeshClient;
  did: string;
  keyManager: Agt5KeyManager;
}

export function createMeshClient(options: AdapterOptions): Agent;

/** `did:mesh:` and the first 32 hex digits of SHA-256 over the raw Ed25519 public key (32 bytes). */
export function didOf(publicKey: Uint8Array): string;

export class Agt5KeyManager extends X3DHKeyManager {
  constructor(
    ed25519Private: Uint8Array,
    ed25519Public: Uint8Array,
    options?: { derivationFor?: (peerIdentityKey: Uint8Array) => Derivation },
  );
  /** Ids of the one-time keys nobody has used yet. */
  get oneTimePreKeyIds(): number[];
}

export class Agt5RegistryClient {
  constructor(options: {
    baseUrl: string;
    signer: { did: string; publicKey: Uint8Array; sign(message: string | Uint8Array): Uint8Array };
    keyManager: X3DHKeyManager;
    onBundle?: (did: string, bundle: PreKeyBundle) => void;
    options?: MeshClientOptions["registryClientOptions"];
  });
  register(did: string, identityKey: Uint8Array, capabilities?: string[], metadata?: Record<string, string>): Promise<void>;
  fetchPrekeys(did: string): Promise<PreKeyBundle | null>;
  deleteAgent(did: string): Promise<void>;
}
