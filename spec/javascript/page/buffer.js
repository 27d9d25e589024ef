// Node's Buffer, in a browser.

export { Buffer } from "buffer";
