"""Gate: is there anything to look at, and how hard is it?"""
