// Reads packed VB-LoRA adapters: structure through the compiled Kaitai description, rules from the text
// of the specification, whose sections the comments name. Nothing here was taken from the Python reader.

import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { Fault } from "./fault.js";
import { decodeHeader } from "./header.js";
import { isJsonObject } from "./json.js";
import { broken, requireValues, reconstruct } from "./values.js";
import { crc32 } from "node:zlib";

const require = createRequire(import.meta.url);
const KaitaiStream = require("kaitai-struct/KaitaiStream");
const { Vblora } = require("./vblora.cjs");

const MAGIC = Buffer.from("8956424c0d0a1a0a", "hex");
const PREAMBLE = 32;
const LONGEST_HEADER = 16777216;
const align = (position) => Math.ceil(position / 64) * 64;
const sha256 = (bytes) => createHash("sha256").update(bytes).digest();

/** What a file says, or a Fault. `data` is a Buffer. */
export function read(data) {
  requirePreamble(data);
  const file = new Vblora(new KaitaiStream(data.buffer, data.byteOffset).constructor ? stream(data) : null);
  const header = decodeHeader(file, data.readUInt16LE(10));
  const bodies = requireLayout(file, header, data);
  requireIntact(file, header, data, bodies);
  requireTexts(header);
  const arrays = requireValues(header, bodies);
  return content(header, arrays, bodies, sha256(data.subarray(0, PREAMBLE + file.preamble.lenHeader)));
}
