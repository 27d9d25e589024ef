// node verdicts.js FOLDER: what this reader says of every file in it, as JSON by name.

import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { Fault } from "./fault.js";
import { read } from "./reader.js";

function verdict(path) {
  try {
    return { content: read(readFileSync(path)) };
  } catch (error) {
    if (error instanceof Fault) return { kind: error.kind, part: error.part };
    throw error;
  }
}

const folder = process.argv[2];
const files = readdirSync(folder).filter((name) => name.endsWith(".vblora"));
const verdicts = files.map((name) => [basename(name, ".vblora"), verdict(join(folder, name))]);
process.stdout.write(JSON.stringify(Object.fromEntries(verdicts)));
