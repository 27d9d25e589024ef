// Compiles ../vblora.ksy to vblora.cjs beside this file.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { parse } from "yaml";

const require = createRequire(import.meta.url);
const compiler = require("kaitai-struct-compiler");

const source = new URL("../vblora.ksy", import.meta.url);
const files = await compiler.compile("javascript", parse(readFileSync(source, "utf8")), null, false);
writeFileSync(new URL("vblora.cjs", import.meta.url), files["Vblora.js"]);
