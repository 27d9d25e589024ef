"""The paper's mathematics: logits → rows (top-k, softmax) → sub-vectors → factors."""
