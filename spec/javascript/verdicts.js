// node verdicts.js FOLDER [BANKS]: what this reader says of every file in it, as JSON by name. Banks that are not in their
// files are looked for in the folder, in banks/ there, and in BANKS.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { Fault } from "./fault.js";
import { read } from "./reader.js";

const [folder, further] = process.argv.slice(2);

function bankOf(sha256) {
  const folders = [folder, join(folder, "banks"), ...(further ? [further] : [])];
  const found = folders.map((one) => join(one, `${sha256}.bank`)).find((path) => existsSync(path));
  return found && readFileSync(found);
}

function verdict(path) {
  try {
    return { content: read(readFileSync(path), bankOf) };
  } catch (error) {
    if (error instanceof Fault) return { kind: error.kind, part: error.part };
    throw error;
  }
}

const files = readdirSync(folder).filter((name) => name.endsWith(".vblora"));
const verdicts = files.map((name) => [basename(name, ".vblora"), verdict(join(folder, name))]);
process.stdout.write(JSON.stringify(Object.fromEntries(verdicts)));
