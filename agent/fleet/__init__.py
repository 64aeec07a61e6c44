"""The fleet: on a workstation, takes many boards to a version by their updates over SSH. Nothing on a board uses it.

What is decided (inventory, plan, judgement, ledger) knows nothing of SSH; the transport decides nothing.
"""
