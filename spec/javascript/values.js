// Sections 7 and 8: the rules of values, and reconstruction.

import { require } from "./fault.js";

/** Bank, indices and all k weights as arrays of numbers, or a Fault. */
export function decodeValues({ h, b, k }, [bankBytes, indexBytes, weightBytes]) {
  const bank = floats(bankBytes);
  require(bank.every(Number.isFinite), "content", "bank", "values that are not finite");

  const count = Number(k);
  const indices = Number(h) > 256 ? shorts(indexBytes) : Array.from(indexBytes);
  const n = indices.length / count;
  require(indices.every((index) => index < Number(h)), "content", "indices", "index past the bank");
  for (let row = 0; row < n; row++) {
    const chosen = new Set(indices.slice(row * count, (row + 1) * count));
    require(chosen.size === count, "content", "indices", `an index twice in row ${row}`);
  }

  const stored = floats(weightBytes);
  const inRange = (w) => w >= 0 && w <= 1 && !Object.is(w, -0);
  require(stored.every(inRange), "content", "weights", "weight outside [0, 1]");
  const weights = [];
  for (let row = 0; row < n; row++) {
    const rest = stored.slice(row * (count - 1), (row + 1) * (count - 1));
    const first = Math.fround(1 - rest.reduce((sum, w) => sum + w, 0));
    weights.push(first, ...rest);
    for (let i = row * count + 1; i < (row + 1) * count; i++) {
      const falls = weights[i - 1] > weights[i];
      const level = weights[i - 1] === weights[i] && indices[i - 1] < indices[i];
      require(falls || level, "content", "weights", `row ${row} is not canonical`);
    }
  }
  return { bank, indices, weights, b: Number(b), k: count };
}

/** Sub-vectors of the rows from `start` to `stop`, one after the other, as a Float32Array. */
export function compose({ bank, indices, weights, b, k }, start, stop) {
  const result = new Float32Array((stop - start) * b);
  for (let row = start; row < stop; row++) {
    for (let element = 0; element < b; element++) {
      let sum = 0;
      for (let i = row * k; i < (row + 1) * k; i++) sum += weights[i] * bank[indices[i] * b + element];
      result[(row - start) * b + element] = sum;
    }
  }
  return result;
}

/** Little-endian bytes of numbers, whatever this machine's own order. */
export function littleEndian(numbers, width) {
  const bytes = Buffer.alloc(numbers.length * width);
  const put = width === 2 ? "writeUInt16LE" : "writeFloatLE";
  numbers.forEach((number, i) => bytes[put](number, i * width));
  return bytes;
}

function floats(bytes) {
  return Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i));
}

function shorts(bytes) {
  return Array.from({ length: bytes.length / 2 }, (_, i) => bytes.readUInt16LE(2 * i));
}
