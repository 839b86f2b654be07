"""Between clients and engines: a picker of endpoints for gateways, and a proxy that hints."""
