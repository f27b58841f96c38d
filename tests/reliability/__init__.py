"""Scenarios that a server must survive, in amounts: each function takes numbers and returns counts.

The quick tests call them with small numbers, `make test-reliability` with large ones. What must not happen at all is an
AssertionError here; what is counted is named so that 0 is good where a name says lost, wrong or left.
"""
