"""Comms: sockets to brokers, and what goes over them."""

from agent.comms.deferred import defer

# paho imports it for the proxies of PySocks, which is not installed; with HTTP and e-mail it takes 3 MB.
defer("urllib.request")
# Of no use without TLS, and 1.3 MB.
defer("ssl")
