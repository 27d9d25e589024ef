meta:
  id: vblora
  title: Packed VB-LoRA adapter, version 1.0
  file-extension: vblora
  license: Apache-2.0
  endian: le
  ks-version: 0.11
doc: |
  Sections 2 and 3 of vblora-1.0.md: preamble, header, sections. Everything that can be said of single values in this language is
  said here (`valid`): magic, version, limits, types, shortest forms, nesting. What needs arithmetic over several values (CRC, hashes,
  lengths, order of names, rules of values) a reader has to check itself. The text is normative, this description is not.
doc-ref: vblora-1.0.md
seq:
  - id: preamble
    type: preamble
  - id: header_bytes
    size: preamble.len_header
instances:
  header:
    io: _root._io
    pos: 32
    size: preamble.len_header
    type: header
    doc: Check `preamble.crc32` over bytes 0 to 27 and `header_bytes` before asking for it.
  ofs_data:
    value: (32 + preamble.len_header + 63) / 64 * 64
    doc: D, from which the offsets of sections count.
  sections:
    type: section(_index)
    repeat: expr
    repeat-expr: header.root.items[7].value.length
    doc: |
      Bank, indices, weights, further tensors. Check offsets and lengths before asking for their bytes.
  num_required_features:
    value: header.root.items[0].value.length
types:
  preamble:
    seq:
      - id: magic
        contents: [0x89, VB, L, 0x0d, 0x0a, 0x1a, 0x0a]
      - id: major
        type: u2
      - id: minor
        type: u2
      - id: len_header
        type: u4
        valid:
          max: 16777216
      - id: len_file
        type: u8
      - id: reserved
        type: u4
      - id: crc32
        type: u4
  header:
    doc: One msgpack map and nothing after it.
    seq:
      - id: root
        type: value(1)
      - id: end
        size-eos: true
        valid:
          expr: _.length == 0
  section:
    params:
      - id: index
        type: u4
    instances:
      entry:
        value: _root.header.root.items[7].value.items[index].value
      offset:
        value: entry.items[0].value.number
      len_body:
        value: entry.items[1].value.number
      sha256:
        value: entry.items[2].value.bytes
      is_external:
        value: index == 0 and _root.num_required_features != 0
        doc: |
          Whether the bytes are an object of its own, named by their SHA-256 (section 12): the bank's, where `external_bank` is among the
          required features. It is the only one that there is; a file with any other is refused before its sections are asked for.
      body:
        io: _root._io
        pos: _root.ofs_data + offset
        size: len_body
        if: not is_external
  value:
    doc: |
      A msgpack value of the types that a header uses, in its shortest encoding.
    params:
      - id: depth
        type: u4
    seq:
      - id: code
        type: u1
        valid:
          expr: >-
            _ <= 0xc0 or (_ >= 0xc2 and _ <= 0xc6) or (_ >= 0xcc and _ <= 0xcf) or (_ >= 0xd9 and _ <= 0xdf)
      - id: u1_value
        type: u1
        if: code == 0xcc
        valid:
          min: 0x80
      - id: u2_value
        type: u2be
        if: code == 0xcd
        valid:
          min: 0x100
      - id: u4_value
        type: u4be
        if: code == 0xce
        valid:
          min: 0x10000
      - id: u8_value
        type: wide
        if: code == 0xcf
      - id: length_1
        type: u1
        if: code == 0xc4 or code == 0xd9
        valid:
          min: 'code == 0xd9 ? 32 : 0'
      - id: length_2
        type: u2be
        if: code == 0xc5 or code == 0xda or code == 0xdc or code == 0xde
        valid:
          min: 'code >= 0xdc ? 16 : 0x100'
      - id: length_4
        type: u4be
        if: code == 0xc6 or code == 0xdb or code == 0xdd or code == 0xdf
        valid:
          min: 0x10000
      - id: bytes
        size: length
        if: is_string or is_binary
      - id: nesting
        size: 0
        if: is_array or is_map
        valid:
          expr: depth <= 8
      - id: items
        type: item(depth, is_map)
        repeat: expr
        repeat-expr: length
        if: is_array or is_map
    instances:
      is_string:
        value: (code >= 0xa0 and code <= 0xbf) or (code >= 0xd9 and code <= 0xdb)
      is_binary:
        value: code >= 0xc4 and code <= 0xc6
      is_array:
        value: (code >= 0x90 and code <= 0x9f) or code == 0xdc or code == 0xdd
      is_map:
        value: (code >= 0x80 and code <= 0x8f) or code == 0xde or code == 0xdf
      length:
        value: >-
          code == 0xc4 or code == 0xd9 ? length_1 :
          code == 0xc5 or code == 0xda or code == 0xdc or code == 0xde ? length_2 :
          code == 0xc6 or code == 0xdb or code == 0xdd or code == 0xdf ? length_4 :
          code >= 0xa0 ? code & 0x1f : code & 0x0f
      number:
        value: >-
          code == 0xcc ? u1_value : code == 0xcd ? u2_value : code == 0xce ? u4_value :
          code == 0xcf ? u8_value.high * 4294967296 + u8_value.low : code
        doc: Of a non-negative integer. Above 2^53 take the halves where numbers are floats.
  wide:
    doc: 64 bits in two halves, for languages whose numbers are not that wide.
    seq:
      - id: high
        type: u4be
        valid:
          min: 1
      - id: low
        type: u4be
  item:
    doc: An element of an array, or a key and its value.
    params:
      - id: depth
        type: u4
      - id: has_key
        type: bool
    seq:
      - id: key
        type: value(depth + 1)
        if: has_key
      - id: value
        type: value(depth + 1)
