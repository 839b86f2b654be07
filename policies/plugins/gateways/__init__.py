"""Routing policies behind gateways that ask over the network: the Endpoint Picker Protocol."""
