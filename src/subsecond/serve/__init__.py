"""Serving over HTTP: schemas, errors, keys, limits, the audit log and the ledger of promises.

Owns: what a request may say and who may send it. These modules take and give bytes and values; the
HTTP framework is known to the application alone.
"""
