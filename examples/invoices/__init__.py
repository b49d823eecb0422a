"""Invoice extraction: the text of an invoice in, compact JSON out, by a small Llama trained from scratch."""
