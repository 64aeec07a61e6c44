"""The fleet: on a workstation, takes many boards to a version by updates over SSH. No board uses it.

What is decided (inventory, plan, judgement, ledger) knows nothing of SSH; the transport decides nothing.
"""
