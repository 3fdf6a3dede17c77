"""One module a system under test; each holds a class `Adapter` that fulfils
adapters.contract.Adapter.
"""
