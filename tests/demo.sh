#!/bin/sh
# The main job on a real checkpoint: pack, look, prove, turn into LoRA. Needs the base package alone.
set -eu
PATH="$(cd "${BIN:-.venv/bin}" && pwd):$PATH"
cd "$(dirname "$0")/data"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

run() {
    echo
    echo "\$ $*" | sed "s|$out/||g"
    "$@" > "$out/said" 2>&1 || { cat "$out/said"; exit 1; }
    sed "s|$out/||g" "$out/said"
}

run vbfmt pack minilm-vblora -o "$out/minilm.vblora"
run vbfmt inspect "$out/minilm.vblora"
run vbfmt verify "$out/minilm.vblora" --against minilm-vblora
run vbfmt expand "$out/minilm.vblora" -o "$out/minilm-lora"

echo
echo "The same file with one bit flipped:"
python3 - "$out" <<'PYTHON'
import sys
data = bytearray(open(f"{sys.argv[1]}/minilm.vblora", "rb").read())
data[5000] ^= 1
open(f"{sys.argv[1]}/damaged.vblora", "wb").write(data)
PYTHON
echo
echo '$ vbfmt verify damaged.vblora'
if vbfmt verify "$out/damaged.vblora" > "$out/said"; then
    echo "the damage was not found" >&2
    exit 1
fi
sed "s|$out/||g" "$out/said"
