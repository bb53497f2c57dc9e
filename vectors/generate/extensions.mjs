// Makes vectors/extensions/*.json: what our own extensions put on the wire (docs/wire.md, "Extensions").
//
//   node vectors/generate/extensions.mjs [FOLDER]
//
// Uses Node's own crypto and JSON and nothing else, so that it shares no code with the Python that is checked
// against its output. Every value comes from a fixed seed: running it again gives the same bytes.

import { createHash, createPrivateKey, createPublicKey, sign } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const GENERATOR_VERSION = "meshlib vectors/generate/extensions.mjs 1";

// --- deterministic inputs -------------------------------------------------------------------------------------------

const sha256 = (data) => createHash("sha256").update(data).digest();
const seeded = (label) => sha256(`meshlib extension vectors ${label}`);

function uuid(label) {
  const bytes = seeded(`uuid ${label}`).subarray(0, 16);
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

const PKCS8_ED25519 = Buffer.from("302e020100300506032b657004220420", "hex"); // RFC 8410, in front of the seed

function agent(label) {
  const seed = seeded(`ed25519 ${label}`);
  const key = createPrivateKey({ key: Buffer.concat([PKCS8_ED25519, seed]), format: "der", type: "pkcs8" });
  const publicKey = createPublicKey(key).export({ format: "der", type: "spki" }).subarray(-32);
  return {
    did: `did:mesh:${sha256(publicKey).toString("hex").slice(0, 32)}`,
    publicKey,
    keys: { ed25519Private: seed.toString("hex"), ed25519Public: publicKey.toString("hex") },
    sign: (statement) => sign(null, Buffer.from(statement), key),
  };
}

const instant = (minute, millisecond) => new Date(Date.UTC(2026, 2, 1, 12, minute, 0, millisecond)).toISOString();
const nonce = (label) => seeded(`nonce ${label}`).toString("base64url");
const hex = (text) => Buffer.from(text).toString("hex");

// --- connect --------------------------------------------------------------------------------------------------------

function connectFrame(me, now, signature, { features, token }) {
  return JSON.stringify({
    v: 1,
    type: "connect",
    from: me.did,
    public_key: me.publicKey.toString("base64"),
    timestamp: now,
    signature: signature.toString("base64"),
    token,
    features: features.length ? features : undefined,
  });
}

function featuresConnect() {
  const cases = [
    ["receipts and challenge", ["receipts", "challenge"]],
    ["one feature", ["receipts"]],
    ["the order of the features is kept", ["challenge", "receipts"]],
    ["a feature from the future", ["receipts", "compression"]],
    ["no feature: the frame of agt-5", []],
    ["a name with non-ASCII text", ["reçus \u{1F4EC}"]],
    ["as many features as a relay reads", Array.from({ length: 32 }, (_, index) => `feature-${index}`)],
    ["with an access token in front of the features", ["receipts"], "header.payload.signature"],
    ["with an access token alone", [], "opaque \"token\""],
  ];
  const tests = cases.map(([comment, features, token], index) => {
    const me = agent(`connect ${index}`);
    const now = instant(index, index * 111);
    const frame = connectFrame(me, now, me.sign(now), { features, token });
    return { comment, ...me.keys, did: me.did, now, features, ...(token && { token }), frame, result: "valid" };
  });
  const me = agent("connect invalid");
  const now = instant(30, 5);
  const broken = [
    ["features is a text", { features: "receipts" }, "connect: features must be a list of at most 32 names"],
    ["features is an object", { features: { receipts: true } }, "connect: features must be a list of at most 32 names"],
    ["a feature is a number", { features: ["receipts", 1] }, "connect: features must be a list of names"],
    ["a feature is null", { features: [null] }, "connect: features must be a list of names"],
    ["a feature is empty", { features: [""] }, "connect: features must be a list of names"],
    ["one feature too many", { features: Array(33).fill("x") }, "connect: features must be a list of at most 32 names"],
    ["a feature of 257 characters", { features: ["x".repeat(257)] }, "connect: features has at most 256 characters, not 257"],
    ["a feature with a line feed", { features: ["a\nb"] }, "connect: features holds control characters or half a surrogate pair"],
    ["token is a number", { features: ["receipts"], token: 5 }, "connect: token must be text"],
  ];
  for (const [comment, members, error] of broken) {
    const frame = JSON.stringify({ ...JSON.parse(connectFrame(me, now, me.sign(now), { features: [] })), ...members });
    tests.push({ comment, flags: ["MalformedFrame"], ...me.keys, did: me.did, now, frame, error, result: "invalid" });
  }
  return { type: "FeaturesConnect", source: "connect frame of a client of ours to a relay that sent no challenge", tests };
}

const challengeStatement = (did, now, challenge) => `mesh-relay-connect-v1\n${did}\n${now}\n${challenge}`;

function challengeProof() {
  const features = ["receipts", "challenge"];
  const tests = [];
  const add = (comment, me, { now, challenge, signed, signature, frameOf = me, flags = [], result, token }) => {
    const made = signature ?? me.sign(signed);
    const frame = connectFrame(frameOf, now, made, { features, token });
    tests.push({
      comment, flags, ...me.keys, did: me.did, now, challenge, features, ...(token && { token }),
      statement: hex(challengeStatement(frameOf.did, now, challenge)),
      signedStatement: signature ? null : hex(signed), frame, result,
    });
  };
  for (let index = 0; index < 4; index++) {
    const me = agent(`challenge ${index}`);
    const now = instant(index, 7);
    const challenge = nonce(`challenge ${index}`);
    const token = index === 3 ? "token-3" : undefined;
    add("signature over DID, timestamp and nonce", me,
      { now, challenge, token, signed: challengeStatement(me.did, now, challenge), result: "valid" });
  }
  const me = agent("challenge invalid");
  const other = agent("challenge other");
  const now = instant(20, 0);
  const challenge = nonce("challenge invalid");
  const good = challengeStatement(me.did, now, challenge);
  const refuse = (comment, flag, changes) => add(comment, me, { now, challenge, flags: [flag], result: "invalid", ...changes });
  refuse("nonce of another connection", "OtherStatement", { signed: challengeStatement(me.did, now, nonce("elsewhere")) });
  refuse("nonce with one character changed", "OtherStatement",
    { signed: challengeStatement(me.did, now, (challenge[0] === "A" ? "B" : "A") + challenge.slice(1)) });
  refuse("nonce with padding", "OtherStatement", { signed: challengeStatement(me.did, now, `${challenge}=`) });
  refuse("empty nonce", "OtherStatement", { signed: challengeStatement(me.did, now, "") });
  refuse("another timestamp", "OtherStatement", { signed: challengeStatement(me.did, instant(21, 0), challenge) });
  refuse("the DID of somebody else", "OtherStatement", { signed: challengeStatement(other.did, now, challenge) });
  refuse("the bare timestamp, as agt-5 signs it", "OtherStatement", { signed: now });
  refuse("another domain", "OtherStatement", { signed: good.replace("connect-v1", "connect-v2") });
  refuse("a line feed at the end", "OtherStatement", { signed: `${good}\n` });
  refuse("the frame carries the key of somebody else", "OtherKey",
    { signed: challengeStatement(other.did, now, challenge), frameOf: other });
  refuse("a DID that is not the hash of the key", "OtherKey",
    { signed: challengeStatement(other.did, now, challenge), frameOf: { ...me, did: other.did } });
  const flipped = (position) => {
    const signature = Buffer.from(me.sign(good));
    signature[position] ^= 1;
    return signature;
  };
  refuse("one bit of R changed", "BadSignature", { signature: flipped(0) });
  refuse("one bit of S changed", "BadSignature", { signature: flipped(40) });
  refuse("signature all zero", "BadSignature", { signature: Buffer.alloc(64) });
  return { type: "ChallengeProof", source: "connect frame of a client of ours to a relay that sent Mesh-Challenge", tests };
}

// --- what the relay answers -----------------------------------------------------------------------------------------

function connectedFrame() {
  const cases = [
    ["both features", ["receipts", "challenge"], instant(0, 0)],
    ["one feature", ["receipts"], instant(1, 250)],
    ["no feature in common", [], instant(2, 999)],
  ];
  const tests = cases.map(([comment, features, serverTime]) => ({
    comment, features, serverTime,
    frame: JSON.stringify({ v: 1, type: "connected", features, server_time: serverTime }),
    result: "valid",
  }));
  const broken = [
    ["features is a text", { features: "receipts" }, "connected: features must be a list of at most 32 names"],
    ["a feature is a number", { features: [1] }, "connected: features must be a list of names"],
    ["server_time is a number", { features: [], server_time: 1772366400 }, "connected: server_time must be text"],
    ["server_time is empty", { features: [], server_time: "" }, "connected: server_time is empty"],
  ];
  for (const [comment, members, error] of broken) {
    const frame = JSON.stringify({ v: 1, type: "connected", ...members });
    tests.push({ comment, flags: ["MalformedFrame"], frame, error, result: "invalid" });
  }
  return { type: "ConnectedFrame", source: "answer of our relay to a connect frame with features", tests };
}

function receiptFrame() {
  const tests = ["stored", "delivered", "expired", "refused", "unread"].map((state) => {
    const id = uuid(`receipt ${state}`);
    return {
      comment: `receipt ${state}`, id, state,
      frame: JSON.stringify({ v: 1, type: "receipt", id, state }), result: "valid",
    };
  });
  for (const [comment, id] of [
    ["an id with escapes and non-ASCII text", 'kéy \u{1F600} "q" \\'],
    ["an id of 256 characters", "i".repeat(256)],
  ]) {
    tests.push({ comment, id, state: "stored", frame: JSON.stringify({ v: 1, type: "receipt", id, state: "stored" }), result: "valid" });
  }
  const id = uuid("receipt invalid");
  const states = "receipt: state must be one of stored, delivered, expired, refused, unread";
  const broken = [
    ["a state nobody knows", { id, state: "lost" }, states],
    ["state in capitals", { id, state: "STORED" }, states],
    ["state is missing", { id }, "receipt: state is missing"],
    ["state is null", { id, state: null }, "receipt: state is missing"],
    ["state is a number", { id, state: 1 }, "receipt: state must be text"],
    ["id is missing", { state: "stored" }, "receipt: id is missing"],
    ["id is a number", { id: 7, state: "stored" }, "receipt: id must be text"],
    ["id is empty", { id: "", state: "stored" }, "receipt: id is empty"],
    ["an id of 257 characters", { id: "i".repeat(257), state: "stored" }, "receipt: id has at most 256 characters, not 257"],
    ["an id with a NUL", { id: "a\u0000b", state: "stored" }, "receipt: id holds control characters or half a surrogate pair"],
    ["an id with half a surrogate pair", { id: "\ud800", state: "stored" }, "receipt: id holds control characters or half a surrogate pair"],
  ];
  for (const [comment, members, error] of broken) {
    const frame = JSON.stringify({ v: 1, type: "receipt", ...members });
    tests.push({ comment, flags: ["MalformedFrame"], frame, error, result: "invalid" });
  }
  return { type: "ReceiptFrame", source: "answer of our relay to a sender that negotiated receipts", tests };
}

// --- what heals sessions ----------------------------------------------------------------------------------------------

function unreadAck() {
  const tests = [];
  for (const [comment, unread] of [["a frame no session reads", true], ["a frame that was read", false]]) {
    const id = uuid(`ack ${comment}`);
    for (const from of [undefined, agent("ack sender").did]) {
      tests.push({
        comment: from ? `${comment}, and whose` : comment, id, from: from ?? null, unread, result: "valid",
        frame: JSON.stringify({ v: 1, type: "ack", id, from, unread: unread || undefined }),
      });
    }
  }
  const id = uuid("ack invalid");
  for (const [comment, members, error] of [
    ["id is missing", { unread: true }, "ack: id is missing"],
    ["id is a number", { id: 7, unread: true }, "ack: id must be text"],
    ["an id of 257 characters", { id: id + "i".repeat(221), unread: true }, "ack: id has at most 256 characters, not 257"],
  ]) {
    const frame = JSON.stringify({ v: 1, type: "ack", ...members });
    tests.push({ comment, flags: ["MalformedFrame"], frame, error, result: "invalid" });
  }
  return { type: "UnreadAck", source: "a recipient's ack of a frame that is of no use to it", tests };
}

function knockRejectDetail() {
  const [me, peer] = [agent("reject sender"), agent("reject recipient")];
  const tests = [undefined, "unknown_prekey"].map((detail, index) => {
    const fields = {
      from: me.did, to: peer.did, id: uuid(`reject ${index}`), knock_id: uuid(`rejected ${index}`),
      reason: "policy_denied", ts: instant(30, index),
    };
    return {
      comment: detail ? "the prekey is not held any more: knock again with a fresh bundle" : "as the SDK writes it",
      ...fields, detail: detail ?? null, result: "valid",
      frame: JSON.stringify({ v: 1, type: "knock_reject", ...fields, detail }),
    };
  });
  return { type: "KnockRejectDetail", source: "answer to a knock that cannot be used", tests };
}

function messageAfter() {
  const [me, peer] = [agent("message sender"), agent("message recipient")];
  const named = (label) => ({
    from: me.did, to: peer.did, id: uuid(`message ${label}`), ts: instant(40, 0),
    header: { dh: seeded("message dh").toString("base64"), pn: 0, n: 1 },
    ciphertext: seeded("message ciphertext").toString("base64"),
  });
  const tests = [undefined, uuid("message before")].map((after, index) => ({
    comment: after ? "the message before it is not known to be delivered" : "as the SDK writes it",
    ...named(index), after: after ?? null, result: "valid",
    frame: JSON.stringify({ v: 1, type: "message", ...named(index), after }),
  }));
  for (const [comment, after, error] of [
    ["after is a number", 7, "message: after must be text"],
    ["an after of 257 characters", "i".repeat(257), "message: after has at most 256 characters, not 257"],
  ]) {
    const frame = JSON.stringify({ v: 1, type: "message", ...named(comment), after });
    tests.push({ comment, flags: ["MalformedFrame"], frame, error, result: "invalid" });
  }
  return { type: "MessageAfter", source: "a message of a sender that negotiated receipts", tests };
}

// --- bound requests -------------------------------------------------------------------------------------------------

const requestStatement = (did, now, method, target, body) =>
  `mesh-registry-request-v1\n${did}\n${now}\n${method}\n${target}\n${sha256(body).toString("hex")}`;

function boundRequest() {
  const tests = [];
  const path = (did, rest = "") => `/v1/agents/${encodeURIComponent(did)}${rest}`;
  const add = (comment, me, request, changes = {}) => {
    const { did = me.did, now, method, target, body } = request;
    const signed = changes.signed ?? requestStatement(did, now, method, target, body);
    const signature = changes.signature ?? me.sign(signed);
    tests.push({
      comment, flags: changes.flags ?? [], ...me.keys, did, now, method, target, body: body.toString("hex"),
      statement: hex(requestStatement(did, now, method, target, body)),
      signedStatement: changes.signature ? null : hex(signed),
      signature: signature.toString("base64url"), result: changes.flags ? "invalid" : "valid",
    });
  };
  const prekeys = Buffer.from(JSON.stringify({ identity_key: nonce("ik"), one_time_pre_keys: [], mode: "merge" }));
  const empty = Buffer.alloc(0);
  const cases = [
    ["prekeys uploaded", (did) => ({ method: "PUT", target: path(did, "/prekeys"), body: prekeys })],
    ["registration deleted", (did) => ({ method: "DELETE", target: path(did), body: empty })],
    ["heartbeat", (did) => ({ method: "POST", target: path(did, "/heartbeat"), body: empty })],
    ["query string, as sent", () => ({ method: "GET", target: "/v1/discover?capability=chat%3Aread&limit=10", body: empty })],
    ["body that is no UTF-8", (did) => ({ method: "POST", target: path(did, "/reputation"), body: Buffer.from("ff00fe", "hex") })],
    ["body with non-ASCII text", (did) => ({ method: "POST", target: path(did, "/reputation"), body: Buffer.from('{"score":1,"reason":"zuverlässig"}') })],
  ];
  cases.forEach(([comment, request], index) => {
    const me = agent(`request ${index}`);
    add(comment, me, { now: instant(index, index), ...request(me.did) });
  });
  const me = agent("request invalid");
  const other = agent("request other");
  const request = { now: instant(40, 0), method: "PUT", target: path(me.did, "/prekeys"), body: prekeys };
  const statement = (changes) => {
    const { did = me.did, now, method, target, body } = { ...request, ...changes };
    return requestStatement(did, now, method, target, body);
  };
  const refuse = (comment, flag, changes) => add(comment, me, request, { flags: [flag], ...changes });
  refuse("signed for another method", "OtherStatement", { signed: statement({ method: "DELETE" }) });
  refuse("method in lower case", "OtherStatement", { signed: statement({ method: "put" }) });
  refuse("signed for another target", "OtherStatement", { signed: statement({ target: path(other.did, "/prekeys") }) });
  refuse("target not percent-encoded", "OtherStatement", { signed: statement({ target: `/v1/agents/${me.did}/prekeys` }) });
  refuse("target with a query", "OtherStatement", { signed: statement({ target: `${request.target}?mode=merge` }) });
  refuse("signed for another body", "OtherStatement", { signed: statement({ body: Buffer.concat([prekeys, Buffer.from(" ")]) }) });
  refuse("signed for an empty body", "OtherStatement", { signed: statement({ body: empty }) });
  refuse("signed at another time", "OtherStatement", { signed: statement({ now: instant(41, 0) }) });
  refuse("signed in the name of somebody else", "OtherStatement", { signed: statement({ did: other.did }) });
  refuse("the bare timestamp, as in Authorization", "OtherStatement", { signed: request.now });
  refuse("a relay's challenge proof", "OtherStatement", { signed: challengeStatement(me.did, request.now, nonce("x")) });
  refuse("body hash in capitals", "OtherStatement",
    { signed: statement({}).replace(/[0-9a-f]{64}$/, (digest) => digest.toUpperCase()) });
  add("a DID that is not the hash of the key", me, { ...request, did: other.did }, { flags: ["OtherKey"] });
  const flipped = (position) => {
    const signature = Buffer.from(me.sign(statement({})));
    signature[position] ^= 0x80;
    return signature;
  };
  refuse("one bit of R changed", "BadSignature", { signature: flipped(1) });
  refuse("one bit of S changed", "BadSignature", { signature: flipped(33) });
  refuse("signature one byte short", "BadSignature", { signature: me.sign(statement({})).subarray(0, 63) });
  return { type: "BoundRequest", source: "header Mesh-Request-Signature of a registry request by a client of ours", tests };
}

// --- files ----------------------------------------------------------------------------------------------------------

const NOTES = {
  BadSignature: "The signature is damaged.",
  MalformedFrame: "The frame has impossible members; error is the text of the refusal.",
  OtherKey: "DID, Ed25519 key and signature do not belong together.",
  OtherStatement: "The signature is genuine and covers signedStatement, which is not the statement of this connection or request.",
};

const FILES = {
  "connect.json": ["Connect frame with features, and proof over the relay's challenge", [featuresConnect(), challengeProof()]],
  "relay_answers.json": ["Connected and receipt frames", [connectedFrame(), receiptFrame()]],
  "healing.json": [
    "Unread acks, rejects with a remedy, and messages that name the one before",
    [unreadAck(), knockRejectDetail(), messageAfter()],
  ],
  "bound_requests.json": ["Registry requests bound to method, target and body", [boundRequest()]],
};

function render([algorithm, groups]) {
  let tcId = 0;
  const used = new Set();
  const testGroups = groups.map(({ type, source, tests }) => ({
    type,
    source,
    tests: tests.map(({ comment, flags = [], ...rest }) => {
      flags.forEach((flag) => used.add(flag));
      return { tcId: ++tcId, comment, flags, ...rest };
    }),
  }));
  const notes = Object.fromEntries(Object.entries(NOTES).filter(([flag]) => used.has(flag)));
  const file = { algorithm, generatorVersion: GENERATOR_VERSION, profile: "meshlib", notes, numberOfTests: tcId, testGroups };
  const ascii = (text) => text.replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return `${ascii(JSON.stringify(file, null, 1))}\n`;
}

const folder = process.argv[2] ?? join(dirname(fileURLToPath(import.meta.url)), "..", "extensions");
mkdirSync(folder, { recursive: true });
for (const [name, content] of Object.entries(FILES)) writeFileSync(join(folder, name), render(content));
