// Section 6: the text of a JSON object (RFC 8259) without duplicate keys, integers of at most 1000 digits,
// nested at most 64 deep. JSON.parse says nothing of the latter three, so the grammar is walked here.

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
// In pieces: the engine's stack grows with the length of one match.
const CHARACTERS = /(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})){1,4096}/y;
const LITERAL = /true|false|null/y;
const DEEPEST = 64;
const MOST_DIGITS = 1000;

class Refused extends Error {}

export function isJsonObject(text) {
  let position = 0;

  const take = (pattern) => {
    pattern.lastIndex = position;
    const match = pattern.exec(text);
    if (match === null) return null;
    position += match[0].length;
    return match;
  };
  const expect = (pattern) => {
    const match = take(pattern);
    if (match === null) throw new Refused();
    return match;
  };
  const string = () => {
    const start = position;
    if (text[position] !== '"') return null;
    position += 1;
    while (take(CHARACTERS) !== null);
    if (text[position] !== '"') throw new Refused();
    position += 1;
    return text.slice(start, position);
  };
  const at = (character) => {
    take(SPACE);
    if (text[position] !== character) return false;
    position += 1;
    take(SPACE);
    return true;
  };

  const members = (close, member) => {
    if (at(close)) return;
    do member();
    while (at(","));
    if (!at(close)) throw new Refused();
  };

  const value = (depth) => {
    if (depth > DEEPEST && (text[position] === "{" || text[position] === "[")) throw new Refused();
    if (at("{")) {
      const keys = new Set();
      members("}", () => {
        const name = string();
        if (name === null) throw new Refused();
        const key = JSON.parse(name);
        if (keys.has(key) || !at(":")) throw new Refused();
        keys.add(key);
        value(depth + 1);
      });
    } else if (at("[")) {
      members("]", () => value(depth + 1));
    } else if (string() === null && take(LITERAL) === null) {
      const [, integer, fraction, exponent] = expect(NUMBER);
      if (integer.length > MOST_DIGITS && fraction === undefined && exponent === undefined) throw new Refused();
    }
  };

  try {
    take(SPACE);
    if (text[position] !== "{") return false;
    value(1);
    take(SPACE);
    return position === text.length;
  } catch (error) {
    if (error instanceof Refused) return false;
    throw error;
  }
}
