"""Hardware decoders of video: which there are, how they are tried, and what happens when one fails."""
