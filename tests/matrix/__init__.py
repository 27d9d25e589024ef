"""Which setups work with vbfmt, with PEFT's VB-LoRA and with PEFT's LoRA: a table."""
