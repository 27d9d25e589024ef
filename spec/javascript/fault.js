/** Why a file is refused: `kind` and `part` in the words of ../corpus/README.md. */
export class Fault extends Error {
  constructor(kind, part, what) {
    super(`${what} (${kind}: ${part})`);
    this.kind = kind;
    this.part = part;
  }
}

/** Throws unless `condition` holds. */
export function require(condition, kind, part, what) {
  if (!condition) throw new Fault(kind, part, what);
}
