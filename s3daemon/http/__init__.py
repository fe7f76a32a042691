"""The HTTP server: uploads by form, pages for programs and for browsers, metrics for Prometheus.

It may touch aiohttp's server, its clients' sockets (through `ingress.listener`) and prometheus_client; it hands forms
on to `delivery.intake` and reads the state from `control.operations`. Begin with `server`, then `upload` for forms and
`pages` for what is read; `metrics` counts what ends, and `figures` has the metrics of the present state; `guard` says
which requests of browsers are refused. The service puts the parts together.
"""
