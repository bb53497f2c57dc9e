import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { describe, test } from "node:test";

import { bundleBelongsTo, didOf, identityKeyBelongsTo } from "../identity.mjs";
import { Agt5KeyManager, derivations } from "../keys.mjs";
import { bytes, hex, refused, replaying, tests } from "./vectors.mjs";

const { SecureChannel } = createRequire(import.meta.url)("@microsoft/agent-governance-sdk");

/** A key manager that holds the private keys a vector gives. */
function manager(keys, profile) {
  const options = profile && { derivationFor: () => profile };
  const created = new Agt5KeyManager(bytes(keys.ed25519Private), bytes(keys.ed25519Public ?? keys.identityPublic), options);
  return replaying({ random: privateKeysOf(keys) }, () => {
    if (keys.signedPreKeyPrivate) created.generateSignedPreKey();
    created.generateOneTimePreKeys(oneTimeKeysOf(keys).length);
    return created;
  });
}

function oneTimeKeysOf({ oneTimePreKeys, oneTimePreKeyPrivate, oneTimePreKeyId }) {
  const given = oneTimePreKeys ?? (oneTimePreKeyPrivate ? [{ id: oneTimePreKeyId, private: oneTimePreKeyPrivate }] : []);
  // Ids count up from 0; a key the vector does not name is filled in.
  const last = Math.max(-1, ...given.map((key) => key.id));
  return Array.from({ length: last + 1 }, (_, id) => given.find((key) => key.id === id)?.private ?? "11".repeat(32));
}

function privateKeysOf(keys) {
  return [keys.signedPreKeyPrivate, ...oneTimeKeysOf(keys)].filter(Boolean);
}

function bundleOf(bundle) {
  const entries = Object.entries(bundle).filter(([, value]) => value !== null);
  return Object.fromEntries(entries.map(([key, value]) => [key, typeof value === "string" ? bytes(value) : value]));
}

describe("derivations", () => {
  for (const profile of ["agt-4", "agt-5"]) {
    for (const vector of tests("kdf.json", "X3dhKdf", { profile })) {
      test(`${profile} ${vector.tcId}: ${vector.comment}`, () => {
        assert.equal(hex(derivations[profile](bytes(vector.dhConcat))), vector.sharedSecret);
      });
    }
  }
});

describe("identity", () => {
  for (const vector of tests("did.json", "DidFromEd25519PublicKey")) {
    test(`DID ${vector.tcId}`, () => assert.equal(didOf(bytes(vector.ed25519Public)), vector.did));
  }

  for (const { tcId, initiator, responder } of tests("x3dh_agt5.json", "X3dhAgreement")) {
    test(`an X25519 key is bound to the DID of its Ed25519 key ${tcId}`, () => {
      const did = didOf(bytes(initiator.ed25519Public));
      assert.ok(identityKeyBelongsTo(did, bytes(initiator.identityPublic)));
      assert.ok(!identityKeyBelongsTo(did, bytes(responder.identityPublic)));
      const own = { identityKey: bytes(initiator.identityPublic), identityKeyEd: bytes(initiator.ed25519Public) };
      assert.ok(bundleBelongsTo(did, own));
      assert.ok(!bundleBelongsTo(did, { ...own, identityKey: bytes(responder.identityPublic) }));
      assert.ok(!bundleBelongsTo(did, { ...own, identityKeyEd: bytes(responder.ed25519Public) }));
    });
  }
});

for (const profile of ["agt-5", "agt-4"]) {
  const file = `x3dh_${profile.replace("-", "")}.json`;

  describe(`key agreement ${profile}`, () => {
    for (const vector of tests(file, "X3dhAgreement")) {
      test(`both sides ${vector.tcId}: ${vector.comment}`, async () => {
        const initiator = await manager(vector.initiator, profile);
        const responder = await manager(vector.responder, profile);
        const bundle = responder.getPublicBundle(vector.usedOneTimeKeyId ?? undefined);
        const started = await replaying({ random: [vector.ephemeralPrivate] }, () => initiator.initiate(bundle));
        assert.equal(hex(started.sharedSecret), vector.sharedSecret);
        assert.equal(hex(started.associatedData), vector.associatedData);
        assert.equal(started.usedOneTimeKeyId ?? null, vector.usedOneTimeKeyId);
        const answered = responder.respond(
          initiator.identityKey.publicKey,
          started.ephemeralPublicKey,
          started.usedOneTimeKeyId,
        );
        assert.equal(hex(answered.sharedSecret), vector.sharedSecret);
        assert.equal(hex(answered.associatedData), vector.associatedData);
      });
    }

    for (const vector of tests(file, "X3dhInitiate")) {
      test(`initiate ${vector.tcId}: ${vector.comment}`, async () => {
        const initiator = await manager(vector.initiator, profile);
        const random = vector.ephemeralPrivate ? [vector.ephemeralPrivate] : [];
        const attempt = () => replaying({ random }, () => initiator.initiate(bundleOf(vector.bundle)));
        if (vector.result === "invalid") return assert.rejects(attempt, refused);
        const { sharedSecret, associatedData, usedOneTimeKeyId } = await attempt();
        assert.equal(hex(sharedSecret), vector.sharedSecret);
        assert.equal(hex(associatedData), vector.associatedData);
        assert.equal(usedOneTimeKeyId ?? null, vector.usedOneTimeKeyId ?? null);
      });
    }

    for (const vector of tests(file, "X3dhRespond")) {
      test(`respond ${vector.tcId}: ${vector.comment}`, async () => {
        const responder = await manager(vector.responder, profile);
        for (const call of vector.calls) {
          const respond = () =>
            responder.respond(
              bytes(call.peerIdentityKey),
              bytes(call.ephemeralPublicKey),
              call.usedOneTimeKeyId ?? undefined,
            );
          if (call.result === "invalid") assert.throws(respond);
          else assert.equal(hex(respond().sharedSecret), call.sharedSecret);
        }
      });
    }
  });
}

describe("channels agt-5", () => {
  for (const vector of tests("channel_agt5.json", "ChannelConversation")) {
    test(`conversation ${vector.tcId}: ${vector.comment}`, async () => {
      const initiator = await manager(vector.initiator);
      const responder = await manager(vector.responder);
      const oneTimeKey = vector.establishment.usedOneTimeKeyId ?? undefined;
      const bundle = responder.getPublicBundle(oneTimeKey);
      const channels = {};
      let establishment;
      await replaying({ random: vector.random }, () => {
        [channels.initiator, establishment] = SecureChannel.createSender(
          initiator,
          bundle,
          bytes(vector.initiatorAdPrefix),
        );
      });
      assert.equal(hex(establishment.ephemeralPublicKey), vector.establishment.ephemeralPublicKey);
      channels.responder = SecureChannel.createReceiver(responder, establishment, bytes(vector.responderAdPrefix));
      for (const step of vector.steps) await replayStep(channels[step.party], step);
    });
  }
});

async function replayStep(channel, step) {
  const run = (body) => replaying({ random: step.random }, body);
  if (step.op === "encrypt") {
    const sent = run(() => channel.send(bytes(step.plaintext)));
    if (step.result === "invalid") return assert.rejects(sent, refused);
    const { header, ciphertext } = await sent;
    assert.equal(hex(ciphertext), step.ciphertext);
    assert.equal(hex(header.dhPublicKey), step.header.dh);
  } else if (step.op === "decrypt") {
    const header = {
      dhPublicKey: bytes(step.header.dh),
      previousChainLength: step.header.pn,
      messageNumber: step.header.n,
    };
    const received = run(() => channel.receive({ header, ciphertext: bytes(step.ciphertext) }));
    if (step.result === "invalid") return assert.rejects(received, refused);
    assert.equal(hex(await received), step.plaintext);
  } else if (step.op === "close") {
    channel.close();
  } else {
    assert.fail(`unknown operation ${step.op}`);
  }
}
