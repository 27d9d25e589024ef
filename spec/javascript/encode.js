// Section 3: the one encoding of a header's values, each in its shortest form.

/** null, boolean, BigInt, string, Uint8Array, Array or Map as msgpack. */
export function encode(value) {
  const pieces = [];
  put(value, pieces);
  return Buffer.concat(pieces);
}

function put(value, pieces) {
  if (value === null) pieces.push(Buffer.of(0xc0));
  else if (typeof value === "boolean") pieces.push(Buffer.of(value ? 0xc3 : 0xc2));
  else if (typeof value === "bigint") pieces.push(integer(value));
  else if (typeof value === "string") {
    const bytes = Buffer.from(value);
    pieces.push(counted(bytes.length, [0xa0, 32], 0xd9, 0xda, 0xdb), bytes);
  } else if (value instanceof Uint8Array) {
    pieces.push(counted(value.length, [0, 0], 0xc4, 0xc5, 0xc6), value);
  } else if (Array.isArray(value)) {
    pieces.push(counted(value.length, [0x90, 16], null, 0xdc, 0xdd));
    for (const item of value) put(item, pieces);
  } else {
    pieces.push(counted(value.size, [0x80, 16], null, 0xde, 0xdf));
    for (const [key, item] of value) {
      put(key, pieces);
      put(item, pieces);
    }
  }
}

function integer(value) {
  if (value < 0x80n) return Buffer.of(Number(value));
  for (const [code, bytes] of [[0xcc, 1], [0xcd, 2], [0xce, 4], [0xcf, 8]]) {
    if (value < 1n << BigInt(8 * bytes)) return numbered(code, value, bytes);
  }
  throw new RangeError(`${value} is more than 64 bits`);
}

/** The first bytes of what has a length: within one byte below `limit`, else by the codes for 1, 2 and 4 more. */
function counted(length, [first, limit], code1, code2, code4) {
  if (length < limit) return Buffer.of(first + length);
  if (code1 !== null && length < 0x100) return numbered(code1, BigInt(length), 1);
  if (length < 0x10000) return numbered(code2, BigInt(length), 2);
  return numbered(code4, BigInt(length), 4);
}

function numbered(code, value, bytes) {
  const wide = Buffer.alloc(8);
  wide.writeBigUInt64BE(value);
  return Buffer.concat([Buffer.of(code), wide.subarray(8 - bytes)]);
}
