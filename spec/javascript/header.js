// Sections 3 to 5: the header's keys, types, names and tables. Encoding and nesting are checked by the
// compiled description while it parses. Numbers are BigInt: the text asks for arithmetic that cannot wrap.

import { encode } from "./encode.js";
import { require } from "./fault.js";

const KEYS = [
  "required_features", "optional_features", "h", "b", "k", "modules", "tensors", "sections",
  "base_model", "config", "metadata",
];
const BITS = {
  F4: 4, F6_E2M3: 6, F6_E3M2: 6,
  BOOL: 8, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8, F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8,
  U16: 16, I16: 16, F16: 16, BF16: 16, U32: 32, I32: 32, F32: 32, U64: 64, I64: 64, F64: 64, C64: 64,
};
const EXTERNAL_BANK = "external_bank";
const LARGEST_BANK = 65536n;
const LONGEST_NAME = 1024;

/** The header as an object; `minor` is the file's minor version. */
export function decode(parsed, minor) {
  const map = plain(parsed.root);
  require(map instanceof Map, "header", "header", "not a map");
  require(map.has("required_features"), "header", "header", "no required_features");
  const required = names(map.get("required_features"), "required_features");
  const unknown = required.find((name) => name !== EXTERNAL_BANK);
  require(unknown === undefined, "feature", "header", `unknown feature ${unknown}`);
  requireKeys(map, minor);

  const header = Object.fromEntries(map);
  header.isThin = required.length > 0;
  for (const size of ["h", "b", "k"]) typed(header[size], "bigint", size);
  header.modules = rows(header.modules, "modules", 5, ["string", "bigint", "bigint", "bigint", "boolean"]);
  header.tensors = rows(header.tensors, "tensors", 3, ["string", "string", "array"]);
  for (const [, dtype, shape] of header.tensors) {
    require(Object.hasOwn(BITS, dtype), "header", "header, tensors", `unknown dtype ${dtype}`);
    for (const size of shape) typed(size, "bigint", "tensors");
  }
  header.sections = rows(header.sections, "sections", 3, ["bigint", "bigint", "binary"]);
  for (const [, , hash] of header.sections) {
    require(hash.length === 32, "header", "header, sections", "a hash of another length");
  }
  require(isArray(header.base_model, 2), "header", "header, base_model", "not two fields");
  for (const text of header.base_model) if (text !== null) typed(text, "string", "base_model");
  if (header.config !== null) typed(header.config, "string", "config");
  require(header.metadata instanceof Map, "header", "header, metadata", "not a map");
  for (const text of header.metadata.values()) typed(text, "string", "metadata");
  names(header.optional_features, "optional_features");

  requireSizes(header);
  requireModules(header);
  requireNames(header.tensors.map(([name]) => name), "content", (i) => `other tensor ${i}`);
  return header;
}

/** The length that each section must have, null where bits do not fill bytes (section 5). */
export function lengths({ h, b, k, modules, tensors }) {
  const n = modules.reduce((sum, [, fanIn, fanOut, rank]) => sum + (rank * (fanIn + fanOut)) / b, 0n);
  const ofTensors = tensors.map(([, dtype, shape]) => {
    if (shape.includes(0n)) return 0n;
    let bits = BigInt(BITS[dtype]);
    for (const size of shape) {
      bits *= size;
      if (bits >> 66n) return null; // more than any file has
    }
    return bits % 8n === 0n ? bits / 8n : null;
  });
  return [4n * h * b, n * k * (h > 256n ? 2n : 1n), 4n * n * (k - 1n), ...ofTensors];
}

/** Section 12: the header that `root` was parsed from, without `external_bank` and with these offsets, encoded. */
export function withOffsets(root, offsets) {
  const map = plain(root);
  map.set("required_features", map.get("required_features").filter((name) => name !== EXTERNAL_BANK));
  map.set("sections", map.get("sections").map(([, length, hash], i) => [offsets[i], length, hash]));
  return encode(map);
}

/** Metadata keys are names too; looked at after hashes and padding, as all texts. */
export function requireMetadataNames(header) {
  requireNames([...header.metadata.keys()], "content", (i) => `metadata ${i}`);
}

function requireKeys(map, minor) {
  const keys = [...map.keys()];
  require(KEYS.every((key, i) => keys[i] === key), "header", "header", "keys are not those of section 3");
  const further = keys.slice(KEYS.length);
  require(ascending(further), "header", "header", "further keys do not ascend");
  if (minor > 0) return;
  const declared = new Set(names(map.get("optional_features"), "optional_features"));
  for (const key of further) require(declared.has(key), "header", "header", `unknown key ${key}`);
}

function requireSizes({ h, b, k }) {
  require(h >= 1n && h <= LARGEST_BANK, "content", "bank", `h = ${h}`);
  require(b >= 1n, "content", "bank", `b = ${b}`);
  require(k >= 1n && k <= h, "content", "indices", `k = ${k}`);
}

function requireModules({ modules, b }) {
  require(modules.length > 0, "content", "module table", "no modules");
  requireNames(modules.map(([name]) => name), "content", (i) => `module ${i}`);
  for (const [name, fanIn, fanOut, rank] of modules) {
    require(rank >= 1n, "content", `module ${name}`, "rank 0");
    for (const features of [fanIn, fanOut]) {
      require(features >= 1n && features % b === 0n, "content", `module ${name}`, `${features} features`);
    }
  }
}

function names(value, what) {
  require(isArray(value), "header", `header, ${what}`, "not an array");
  for (const name of value) typed(name, "string", what);
  requireNames(value, "header", () => `header, ${what}`);
  return value;
}

/** Section 3: names are not empty, not long, without control characters, distinct and ascending. */
function requireNames(list, kind, part) {
  list.forEach((name, i) => {
    const bytes = Buffer.from(name);
    require(bytes.length >= 1 && bytes.length <= LONGEST_NAME, kind, part(i), "empty or too long");
    require(!/[\u0000-\u001f\u007f-\u009f]/.test(name), kind, part(i), "control character");
    require(i === 0 || ascending([list[i - 1], name]), kind, part(i), "twice or out of order");
  });
}

/** By UTF-8 bytes: JavaScript's own comparison goes by UTF-16 units. */
function ascending(list) {
  return list.every((text, i) => i === 0 || Buffer.compare(Buffer.from(list[i - 1]), Buffer.from(text)) < 0);
}

function rows(value, what, fields, types) {
  require(isArray(value), "header", `header, ${what}`, "not an array");
  for (const row of value) {
    require(isArray(row, fields), "header", `header, ${what}`, `not ${fields} fields`);
    row.forEach((field, i) => typed(field, types[i], what));
  }
  return value;
}

function typed(value, type, what) {
  const found = isArray(value) ? "array" : value instanceof Uint8Array ? "binary" : typeof value;
  require(found === type, "header", `header, ${what}`, `found ${found}, expected ${type}`);
}

function isArray(value, length) {
  return Array.isArray(value) && (length === undefined || value.length === length);
}

/** A parsed value as null, boolean, BigInt, string, Uint8Array, Array or Map. */
function plain(node) {
  if (node.isArray) return node.items.map((item) => plain(item.value));
  if (node.isMap) return map(node.items);
  if (node.isString) return text(node.bytes);
  if (node.isBinary) return node.bytes;
  if (node.code === 0xc0) return null;
  if (node.code === 0xc2 || node.code === 0xc3) return node.code === 0xc3;
  if (node.code === 0xcf) return (BigInt(node.u8Value.high) << 32n) | BigInt(node.u8Value.low);
  return BigInt(node.number);
}

function map(items) {
  const result = new Map();
  for (const item of items) {
    const key = plain(item.key);
    require(typeof key === "string", "header", "header", "a key that is no string");
    require(!result.has(key), "header", "header", `key ${key} twice`);
    result.set(key, plain(item.value));
  }
  return result;
}

/** Strict UTF-8, and a byte order mark is a character like any other. */
function text(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    require(false, "header", "header", "a string that is not UTF-8");
  }
}
