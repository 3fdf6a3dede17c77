"""Serving over HTTP: who may ask for what, what is promised, and how it is answered.

A request's way: `protocol` (connections), `app` (routes, keys), `schema` (what it may say), `desk`
(what is promised), `generation` (its life), `forms` (its answer). `loading` and `admin` bring
models in and out, `calibrate` measures them; `metrics`, `ledger`, `audit` and `logs` record.
Starlette is known to `app` alone, uvicorn to `run` and `protocol`.
"""
