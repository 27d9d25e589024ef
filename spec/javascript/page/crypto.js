// What the reader needs of node:crypto, in a browser.

import { sha256 } from "@noble/hashes/sha2.js";
import { Buffer } from "buffer";

/** A hash as node:crypto has it, for SHA-256 alone. */
export function createHash() {
  const hash = sha256.create();
  return {
    update(bytes) {
      hash.update(bytes);
      return this;
    },
    digest: () => Buffer.from(hash.digest()).toString("hex"),
  };
}
