"""Images as tokens and back: frozen tokenizers, and what is cached of them."""
