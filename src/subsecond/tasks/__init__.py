"""What users call: LLM (generate, stream, chat, logits) and Chat (several turns)."""
