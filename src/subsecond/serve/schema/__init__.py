"""What requests may say and what answers look like: one module a family of routes.

Each `read_*` takes the bytes of a body and gives a typed request whose values are all checked, or
raises a typed error that names the field; each answer is a struct that `wire.encode` makes bytes
of. A field of OpenAI's interface is served, or accepted at the one value that asks for nothing
(`store: false`), or refused by name. Any other field is an error.
"""
