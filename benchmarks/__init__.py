"""Benchmarks of gpx against its peers.

``python -m benchmarks`` lists them, ``python -m benchmarks NAME`` runs one. Every model of a task runs in a
process of its own, with the same thread settings and in turn (gpx, peer, gpx, peer, ...), so that ratios
compare like with like even where the speed of the machine drifts.
"""
