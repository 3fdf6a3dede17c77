"""Text on its own: tokenizer, GGUF tokenizers, chat template, incremental detokenizer, stop
strings.

Knows nothing of models, engines or files' places; imports only `subsecond.errors`.
"""
