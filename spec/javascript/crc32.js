// Section 2: CRC-32 of polynomial 0x04C11DB7, reflected. (node:zlib has one from version 20.15 only.)

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

export function crc32(pieces) {
  let crc = 0xffffffff;
  for (const piece of pieces) for (const byte of piece) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
