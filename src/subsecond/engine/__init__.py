"""The part that decides which sequences get how many tokens in the next step. Plain Python over
token ids.
"""
