"""The daemon: streams from their sources to the broker, as the configuration says."""

from agent.comms import defer

# shutil imports them for archives, which the daemon never packs: 0.4 MB.
defer("bz2")
defer("lzma")
