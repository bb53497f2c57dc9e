// A WebSocket as the SDK sees one, with what agt-5 expects of a client done on the way through.
//
// Outward: the connect frame is completed with the proof of possession, heartbeats are sent, knocks are acknowledged.
// Inward: what the SDK would stumble over stays outside (see `MeshSocket.#admit`).

import { BoundedMap } from "./bounded.mjs";
import { commitsToKey, identityKeyBelongsTo } from "./identity.mjs";

const HEARTBEAT_MS = 30_000;

/** Reconnecting after these only repeats them; for two processes with one identity it never ends. */
const FINAL_CLOSE_CODES = new Set([4003, 4005, 4006]);

/** The SDK keeps a message without a session for 3 s, longer only while it considers a knock. */
const PATIENCE_MS = 3_500;

/** Enough to cover a full offline inbox being replayed after a lost ack. */
const REMEMBERED_FRAMES = 8192;

/** What outlives one socket: a reconnect must not make the SDK see a frame twice. */
export class Memory {
  handled = new BoundedMap(REMEMBERED_FRAMES);
  unreadable = new BoundedMap(REMEMBERED_FRAMES);
  knocks = new BoundedMap(REMEMBERED_FRAMES);
}

export class MeshSocket {
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;

  #socket;
  #agent;
  #memory;
  #underway = new BoundedMap(REMEMBERED_FRAMES);
  #considered = new BoundedMap(REMEMBERED_FRAMES);
  #heartbeat = null;
  #closed = false;

  /**
   * @param socket a WebSocket that is connecting
   * @param agent {signer, isPlaintextPeer(did), hasSession(did), onKnock(from, identityKey), onRefused(reason, frame)}
   */
  constructor(socket, agent, memory = new Memory()) {
    this.#socket = socket;
    this.#agent = agent;
    this.#memory = memory;
    socket.onopen = (event) => {
      this.#heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS);
      this.#heartbeat.unref?.();
      this.onopen?.(event);
    };
    socket.onmessage = ({ data }) => this.#receive(String(data));
    socket.onerror = (event) => this.#closed || this.onerror?.(event);
    socket.onclose = ({ code, reason }) => this.#finish(code, String(reason ?? ""));
  }

  get readyState() {
    return this.#socket.readyState;
  }

  get bufferedAmount() {
    return this.#socket.bufferedAmount;
  }

  send(text) {
    const frame = JSON.parse(text);
    if (frame.type === "connect") return this.#write({ ...frame, ...this.#proof() });
    this.#socket.send(text);
    if (frame.type === "knock") this.#memory.knocks.set(frame.id, true);
    if (frame.type === "ack") this.#settle(frame.id);
    if (frame.type === "knock_accept" || frame.type === "knock_reject") {
      this.#considered.delete(frame.to);
      this.#acknowledge(frame.knock_id);
    }
  }

  /**
   * The SDK could not read a message of this peer and has dropped the session. Delivered again, the same frames would
   * end the next session, too. The relay is told that they were not read: a sender that can encrypts them anew.
   */
  sessionLost(peer) {
    for (const frame of [...this.#underway.values()]) {
      if (frame.from === peer) this.#giveUp(frame);
    }
  }

  #expect(frame) {
    const look = () => (this.#considered.has(frame.from) ? this.#expect(frame) : this.#giveUp(frame));
    setTimeout(look, PATIENCE_MS).unref?.();
  }

  #giveUp(frame) {
    if (this.#underway.get(frame.id) !== frame) return;
    this.#underway.delete(frame.id);
    this.#memory.unreadable.set(identifyCopy(frame), true);
    this.#write({ v: 1, type: "ack", id: frame.id, from: frame.from, unread: true });
  }

  /**
   * The SDK hears of its own close at once. Told later, it would take the event for the end of the connection it has
   * opened in the meantime.
   */
  close(code = 1000, reason = "") {
    this.#socket.close(code, reason);
    this.#finish(code, reason);
  }

  #finish(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#heartbeat);
    // 1000 is the only code after which the SDK does not reconnect.
    this.onclose?.({ code: FINAL_CLOSE_CODES.has(code) ? 1000 : code, reason: reason || `closed with ${code}` });
  }

  #proof() {
    const timestamp = new Date().toISOString();
    const { signer } = this.#agent;
    return {
      public_key: Buffer.from(signer.publicKey).toString("base64"),
      timestamp,
      signature: Buffer.from(signer.sign(timestamp)).toString("base64"),
    };
  }

  #beat() {
    this.#write({ v: 1, type: "heartbeat", from: this.#agent.signer.did, ts: new Date().toISOString() });
  }

  #receive(text) {
    if (this.#closed) return;
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return this.#agent.onRefused?.("not JSON", text);
    }
    const frames = frame?.type === "pending_messages" && Array.isArray(frame.messages) ? frame.messages : [frame];
    for (const each of frames) this.#admit(each);
  }

  /** Hands the SDK what it can deal with. */
  #admit(frame) {
    if (frame === null || typeof frame !== "object" || Array.isArray(frame)) {
      return this.#refuse("not an object: ends the SDK's process", frame);
    }
    if (frame.type === "message") return this.#admitMessage(frame);
    if (frame.type === "knock") return this.#admitKnock(frame);
    if (frame.type === "knock_reject" && !this.#memory.knocks.has(frame.knock_id)) {
      return this.#refuse("rejects a knock that was never sent", frame);
    }
    this.#deliver(frame);
    if (frame.type === "knock_accept" || frame.type === "knock_reject") this.#acknowledge(frame.id);
  }

  #admitMessage(frame) {
    const key = identify(frame);
    // The SDK takes a second delivery for tampering and drops the session.
    if (this.#memory.handled.has(key)) return this.#acknowledge(frame.id);
    const before = this.#underway.get(frame.id);
    if (before && identifyCopy(before) === identifyCopy(frame)) return;
    if (this.#memory.unreadable.has(identifyCopy(frame))) return;
    if (frame.plaintext && !this.#agent.isPlaintextPeer(frame.from)) {
      return this.#refuse("plaintext from a peer that is not on the list", frame);
    }
    const underway = { from: frame.from, id: frame.id, header: frame.header };
    this.#underway.set(frame.id, underway);
    // Without a session the SDK keeps the frame for a knock that may come, and then drops it without a word.
    if (!this.#agent.hasSession(frame.from)) this.#expect(underway);
    this.#deliver(frame);
  }

  #admitKnock(frame) {
    const key = identify(frame);
    if (this.#memory.handled.has(key)) return this.#acknowledge(frame.id);
    const identityKey = Buffer.from(String(frame.establishment?.ik ?? ""), "base64");
    if (commitsToKey(String(frame.from)) && !identityKeyBelongsTo(frame.from, identityKey)) {
      return this.#refuse("knocks in another agent's name", frame);
    }
    this.#memory.handled.set(key, true);
    this.#considered.set(frame.from, true);
    this.#agent.onKnock?.(frame.from, identityKey);
    this.#deliver(frame);
  }

  /** A refused frame is acknowledged: the relay would send it again for days. */
  #refuse(reason, frame) {
    this.#agent.onRefused?.(reason, frame);
    this.#acknowledge(frame?.id);
  }

  #settle(id) {
    const frame = this.#underway.get(id);
    if (frame === undefined) return;
    this.#underway.delete(id);
    this.#memory.handled.set(identify(frame), true);
  }

  #deliver(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }

  #acknowledge(id) {
    if (typeof id === "string") this.#write({ v: 1, type: "ack", id });
  }

  #write(frame) {
    if (!this.#closed) this.#socket.send(JSON.stringify(frame));
  }
}

/** The message, however often it is encrypted. */
const identify = ({ from, id }) => JSON.stringify([from, id]);

/** The message as it was encrypted once. */
const identifyCopy = ({ from, id, header }) => JSON.stringify([from, id, header?.dh, header?.n]);
