// node page/build.js OUTPUT: one HTML file with everything in it.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const output = process.argv[2];
const here = (name) => fileURLToPath(new URL(name, import.meta.url));

const bundle = await build({
  entryPoints: [here("main.js")],
  bundle: true,
  minify: true,
  write: false,
  platform: "browser",
  format: "iife",
  target: "es2022",
  alias: { "node:crypto": here("crypto.js"), buffer: here("../node_modules/buffer/index.js") },
  inject: [here("buffer.js")],
  external: ["iconv-lite", "zlib"], // of the stream class, for what no adapter has
});
const script = bundle.outputFiles[0].text.replaceAll("</script", "<\\/script");
const page = readFileSync(here("page.html"), "utf8").replace("/*SCRIPT*/", () => script);
mkdirSync(dirname(output), { recursive: true });
writeFileSync(output, page);
