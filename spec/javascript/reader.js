// Reads packed VB-LoRA adapters: structure through the compiled Kaitai description, rules from the text of
// the specification, whose sections the comments name. Written from those alone.

import { createHash } from "node:crypto";
import KaitaiStream from "kaitai-struct/KaitaiStream.js";
import { crc32 } from "./crc32.js";
import { Fault, require } from "./fault.js";
import { decode, lengths, requireMetadataNames, withOffsets } from "./header.js";
import { isJsonObject } from "./json.js";
import { compose, decodeValues, littleEndian } from "./values.js";
import description from "./vblora.cjs";

const { Vblora } = description;
const MAGIC = Buffer.from("8956424c0d0a1a0a", "hex");
const PREAMBLE = 32;
const LONGEST_HEADER = 16777216;
const MAJOR = 1;

/**
 * What the file in a Buffer says, as ../corpus/README.md describes it; or throws a Fault.
 * `bankOf` gives the Buffer of a bank that is not in the file (section 12) by its SHA-256 in hexadecimal digits, or undefined.
 */
export function read(data, bankOf = () => undefined) {
  const { header, values, bodies, digest } = open(data, bankOf);
  return content(header, values, bodies, digest);
}

/** Header, values, sections and digest of a file in which every rule holds; or throws a Fault. */
export function open(data, bankOf = () => undefined) {
  requirePreamble(data);
  const file = new Vblora(new KaitaiStream(data));
  const header = parsed(file, data.readUInt16LE(10));
  const bodies = requireLayout(file, header, data);
  const front = embeddedFront(file, header, data);
  if (header.isThin) bodies[0] = externalBank(header, bankOf);
  requireIntact(file, header, data, bodies);
  requireTexts(header);
  const values = decodeValues(header, bodies);
  return { header, values, bodies, digest: `sha256:${sha256(front)}` };
}

/** Section 2: magic, length, CRC, major version, in this order. */
function requirePreamble(data) {
  const start = data.subarray(0, MAGIC.length);
  require(MAGIC.subarray(0, start.length).equals(start), "magic", "preamble", "another kind of file");
  require(data.length >= PREAMBLE, "length", "whole file", "cut off in the preamble");
  const lenHeader = data.readUInt32LE(12);
  const lenFile = data.readBigUInt64LE(16);
  if (lenHeader > LONGEST_HEADER || PREAMBLE + lenHeader > data.length) {
    const cutOff = lenHeader <= LONGEST_HEADER && data.length < lenFile;
    throw cutOff
      ? new Fault("length", "whole file", "cut off in the header")
      : new Fault("checksum", "preamble", "impossible length of the header");
  }
  const found = crc32([data.subarray(0, 28), data.subarray(PREAMBLE, PREAMBLE + lenHeader)]);
  require(found === data.readUInt32LE(28), "checksum", "preamble or header", "CRC-32 differs");
  const major = data.readUInt16LE(8);
  require(major === MAJOR, "version", "preamble", `version ${major}, this reader knows ${MAJOR}`);
  require(lenFile === BigInt(data.length), "length", "whole file", "another length than it says");
  require(data.readUInt32LE(24) === 0, "layout", "preamble", "reserved bytes are not zero");
}

/** Section 3, the encoding by the description, the rest by header.js. */
function parsed(file, minor) {
  let tree;
  try {
    tree = file.header;
  } catch (error) {
    if (error instanceof Fault) throw error;
    throw new Fault("header", "header", `not canonical msgpack: ${error.message}`);
  }
  return decode(tree, minor);
}

function partNames(header) {
  return ["bank", "indices", "weights", ...header.tensors.map(([name]) => `tensor ${name}`)];
}

/** Sections 2 and 3: as many sections as there must be, each as long as it must be, where it must be. */
function requireLayout(file, header, data) {
  const wanted = lengths(header);
  const parts = partNames(header);
  require(header.sections.length === wanted.length, "header", "header", "wrong number of sections");
  header.sections.forEach(([, length], i) => {
    require(length === wanted[i], "header", parts[i], `section of ${length} bytes, not ${wanted[i]}`);
  });
  let end = 0n;
  header.sections.forEach(([offset, length], i) => {
    require(offset === align(end), "layout", parts[i], `section at ${offset}, not ${align(end)}`);
    end = offset + (isExternal(header, i) ? 0n : length);
  });
  const total = BigInt(file.ofsData) + end;
  require(total === BigInt(data.length), "layout", "sections", "the sections end elsewhere");
  return file.sections.map((section) => section.body && Buffer.from(section.body));
}

function isExternal(header, i) {
  return i === 0 && header.isThin;
}

/** Section 12: preamble and header of the form with its bank inside, of which the digest is taken. */
function embeddedFront(file, header, data) {
  const front = data.subarray(0, PREAMBLE + file.preamble.lenHeader);
  if (!header.isThin) return front;
  const lengths = header.sections.map(([, length]) => length);
  let end = 0n;
  const offsets = lengths.map((length) => {
    const offset = align(end);
    end = offset + length;
    return offset;
  });
  const tooLong = () => new Fault("layout", "sections", "the form with its bank inside is too long");
  if (end >= 1n << 64n) throw tooLong();
  const encoded = withOffsets(file.header.root, offsets);
  const total = align(BigInt(PREAMBLE + encoded.length)) + end;
  if (encoded.length > LONGEST_HEADER || total >= 1n << 64n) throw tooLong();
  const preamble = Buffer.from(front.subarray(0, PREAMBLE));
  preamble.writeUInt32LE(encoded.length, 12);
  preamble.writeBigUInt64LE(total, 16);
  preamble.writeUInt32LE(crc32([preamble.subarray(0, 28), encoded]), 28);
  return Buffer.concat([preamble, encoded]);
}

/** Section 12: the bank that the header names, of the right length and hash, or a Fault. */
function externalBank(header, bankOf) {
  const [, length, hash] = header.sections[0];
  const name = Buffer.from(hash).toString("hex");
  const bank = bankOf(name);
  require(bank !== undefined, "bank", "bank", `no ${name}.bank`);
  require(BigInt(bank.length) === length, "checksum", "bank", "a bank of another length");
  require(sha256(bank) === name, "checksum", "bank", "another bank");
  return bank;
}

/** The rules marked *data* of sections 2 and 3: zeros between, hashes. */
function requireIntact(file, header, data, bodies) {
  const parts = partNames(header);
  let position = PREAMBLE + file.preamble.lenHeader;
  header.sections.forEach(([offset, length, hash], i) => {
    if (isExternal(header, i)) return;
    const start = file.ofsData + Number(offset);
    const zeros = data.subarray(position, start).every((byte) => byte === 0);
    require(zeros, "layout", `before ${parts[i]}`, "padding is not zero");
    position = start + Number(length);
    require(sha256(bodies[i]) === Buffer.from(hash).toString("hex"), "checksum", parts[i], "damaged");
  });
}

/** Section 6. */
function requireTexts(header) {
  requireMetadataNames(header);
  const sound = header.config === null || isJsonObject(header.config);
  require(sound, "content", "config", "not a JSON object");
}

function content(header, values, bodies, digest) {
  let row = 0;
  const factor = (features, rank) => {
    const start = row;
    row += Number((rank * features) / header.b);
    return sha256(littleEndian(compose(values, start, row), 4));
  };
  return {
    digest,
    h: Number(header.h),
    b: Number(header.b),
    k: Number(header.k),
    bank: sha256(bodies[0]),
    indices: sha256(littleEndian(values.indices, 2)),
    weights: sha256(littleEndian(values.weights, 4)),
    modules: header.modules.map(([name, fanIn, fanOut, rank, fanInFanOut]) => ({
      name,
      in_features: Number(fanIn),
      out_features: Number(fanOut),
      rank: Number(rank),
      fan_in_fan_out: fanInFanOut,
      A: factor(fanIn, rank),
      B_transposed: factor(fanOut, rank),
    })),
    tensors: header.tensors.map(([name, dtype, shape], i) => ({
      name,
      dtype,
      shape: shape.map(String),
      bytes: bodies[3 + i].toString("hex"),
    })),
    base_model: header.base_model,
    config: header.config,
    metadata: Object.fromEntries(header.metadata),
  };
}

function align(position) {
  return ((position + 63n) / 64n) * 64n;
}

function sha256(bytes) {
  return createHash("sha256").update(bytes).digest("hex");
}
