"""Listening tests: songs of several systems compared blind, and what the answers say."""
